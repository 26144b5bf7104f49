"""From photos to cluster ids with a trained run: windows, read-outs and the dense CRF."""

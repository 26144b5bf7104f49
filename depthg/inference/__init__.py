"""Segmentation of photos with a trained run: windows, read-outs and the dense CRF."""

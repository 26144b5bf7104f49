"""Renderer of the procedural scenes (depthg.data.scenes), in numpy alone: its worker processes start without torch."""

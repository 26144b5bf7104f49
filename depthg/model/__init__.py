"""The trained part: head and probes, checkpoints, the run folder, and finished runs read back."""

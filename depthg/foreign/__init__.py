"""Other people's checkpoints: read as data, without running or importing anything that they name."""

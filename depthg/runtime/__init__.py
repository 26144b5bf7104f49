"""What any command runs on: processes, workers, devices, progress, signals, and how a command ends."""

"""Training: the loop, one step, batches, points, the depth term and schedules."""

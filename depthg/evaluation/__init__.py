"""Evaluation: one pass over a split, confusion matrices, matching, k-means baselines and results."""

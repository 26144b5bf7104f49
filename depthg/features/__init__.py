"""Inputs computed once before training: features, nearest neighbours, labels and depth of every view."""

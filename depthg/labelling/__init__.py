"""Naming the clusters of a run: from labelled photos, or by hand on a page of this machine."""

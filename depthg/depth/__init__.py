"""Depth of photos: where it comes from, networks that predict it, and how training sees it."""

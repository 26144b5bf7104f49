"""Files for annotation tools, in which people correct what a run predicts: a module per format."""

"""One file per data set, all behind the same small interface."""

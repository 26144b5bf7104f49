"""Pages and pictures: the report of a run, comparisons and diagnoses."""

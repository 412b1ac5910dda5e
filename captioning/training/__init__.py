"""Training a captioner: the run from data to results, its callbacks and loggers."""

"""Training a captioner: a whole run from data to results, its callbacks and its loggers."""

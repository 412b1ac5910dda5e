"""From a data set on disk to batches: readers, text, features, and the data module."""

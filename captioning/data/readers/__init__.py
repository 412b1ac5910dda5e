"""Readers: one file for each layout in which a data set can lie on disk."""

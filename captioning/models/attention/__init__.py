"""Attention over the locations of an image, one file for each kind."""

"""Decoding a split, scoring captions and recording the results."""

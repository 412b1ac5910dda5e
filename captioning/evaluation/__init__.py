"""Decoding a split, scoring captions and writing down what was found."""

"""Networks that turn an image into a grid of feature vectors, one file each."""

"""Fast implementations of a few operations, behind :mod:`captioning.kernels.ops`."""

"""Kernels for the CPU in C, which the machine's own compiler compiles on first use."""

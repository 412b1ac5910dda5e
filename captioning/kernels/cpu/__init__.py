"""Kernels for the CPU, in C, compiled by the machine's own compiler on first use."""

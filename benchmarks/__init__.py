"""Benchmarks, each beside its reference and its floor: ``make bench``."""

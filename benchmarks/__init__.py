"""Benchmarks, each with a reference implementation and a lower bound: ``make bench``."""

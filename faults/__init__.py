"""Faults that are made on purpose, to count what is lost; see ``docs/reliability.md``."""

"""Losses that a captioner is trained with."""

"""Attention over the locations of an image, one file for each kind."""

from typing import Final

ATTENTIONS: Final = {
    "additive": "captioning.models.attention.additive.AdditiveAttention",
    "multiplicative": "captioning.models.attention.multiplicative.MultiplicativeAttention",
    "scaled_dot": "captioning.models.attention.scaled_dot.ScaledDotAttention",
}
"""The classes of ``model.attention=NAME``; any other class is given by its dotted path."""

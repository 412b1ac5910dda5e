"""Attention over the locations of an image, one file for each kind."""

from typing import Final

ATTENTIONS: Final = {
    "additive": "captioning.models.attention.additive.AdditiveAttention",
    "multiplicative": "captioning.models.attention.multiplicative.MultiplicativeAttention",
    "scaled_dot": "captioning.models.attention.scaled_dot.ScaledDotAttention",
}
"""What ``model.attention=NAME`` means; a dotted path names any other class."""

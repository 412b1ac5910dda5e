"""Writing captions with a trained decoder: greedy, sampled, or by beam search."""

from captioning.decoding.base import Decoding, Hypothesis
from captioning.decoding.beam import Beam
from captioning.decoding.sample import Greedy, Sample

__all__ = ["Beam", "Decoding", "Greedy", "Hypothesis", "Sample"]

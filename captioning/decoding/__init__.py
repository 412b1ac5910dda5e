"""Writing captions with a trained decoder: greedy, sampled, by beam search, or by agreement."""

from captioning.decoding.base import Decoding, Hypothesis
from captioning.decoding.beam import Beam
from captioning.decoding.diverse_beam import DiverseBeam
from captioning.decoding.mbr import MBR
from captioning.decoding.sample import Greedy, Sample

__all__ = ["MBR", "Beam", "Decoding", "DiverseBeam", "Greedy", "Hypothesis", "Sample"]

"""The order in which the tokens of a batch of captions are computed: word after word."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from captioning.kernels.ops import Rows
from captioning.support.special_tokens import PAD

ROW_MULTIPLE = 16
"""What the number of rows is a multiple of, where there are many.

As captions end, the number of rows would be another one at almost every word, and for every new
shape of a matrix product oneDNN generates code, which takes longer than the product. A few rows
more, of captions that have ended, keep the shapes few.
"""


class Packed(NamedTuple):
    """The tokens of some captions, word after word: all first words, all second words, ...

    Attributes:
        rows: the caption of each row.
        counts: how many rows have a first word, a second one, ...: always a prefix of the rows.
        inputs: N, the tokens that are read.
        targets: N, the tokens to be predicted; 0 where a row has ended.
        positions: N, where each target stands in the flattened B x K x T.
        lengths: B x K, how many targets each caption has.
    """

    rows: Rows
    counts: list[int]
    inputs: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    lengths: Int[Tensor, "images captions"]

    def to(self, device: torch.device) -> "Packed":
        """The same on a device."""
        index, inputs, targets, positions, lengths = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.rows.index, self.inputs, self.targets, self.positions, self.lengths)
        )
        rows = self.rows._replace(index=index)
        return Packed(rows, self.counts, inputs, targets, positions, lengths)


def pack(tokens: Int[Tensor, "images captions length"]) -> Packed:
    """Order the tokens of captions (``<start>`` ... ``<end>``, 0-padded).

    In the CPU's memory, captions that have ended leave the rows. On a GPU, where counting would
    wait for it, every caption is computed at every word.
    """
    return _pack_live(tokens) if tokens.device.type == "cpu" else _pack_all(tokens)


def _pack_live(tokens: Int[Tensor, "images captions length"]) -> Packed:
    """With nothing for padding, but for :data:`ROW_MULTIPLE`."""
    images, captions, length = tokens.shape
    tokens = tokens.flatten(0, 1)
    lengths = (tokens[:, 1:] != PAD).sum(1)
    # Longest first, so that the captions that still have a word are a prefix of the rows.
    index = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
    real = (tokens[index, 1:] != PAD).sum(0)
    counts = _rounded_up(real[real > 0], len(index))
    words = len(counts)
    computed = torch.arange(len(index)) < counts[:, None]  # words x rows
    positions = index * (length - 1) + torch.arange(words)[:, None]
    return Packed(
        Rows(index, images, captions),
        counts.tolist(),
        tokens[index, :words].T[computed],
        tokens[index, 1 : words + 1].T[computed],
        positions[computed],
        lengths.view(images, captions),
    )


def _pack_all(tokens: Int[Tensor, "images captions length"]) -> Packed:
    """With every caption at every word: nothing but the shape decides."""
    images, captions, length = tokens.shape
    rows = Rows.all(images, captions, tokens.device)
    words = torch.arange(length - 1, device=tokens.device)
    tokens = tokens.flatten(0, 1)
    return Packed(
        rows,
        [images * captions] * (length - 1),
        tokens[:, :-1].T.flatten(),
        tokens[:, 1:].T.flatten(),
        (rows.index * (length - 1) + words[:, None]).flatten(),
        (tokens[:, 1:] != PAD).sum(1).view(images, captions),
    )


def _rounded_up(counts: Int[Tensor, " words"], rows: int) -> Int[Tensor, " words"]:
    """The numbers of rows that are computed for so many real ones: see :data:`ROW_MULTIPLE`."""
    if rows < 4 * ROW_MULTIPLE:
        return counts
    return ((counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE).clamp(max=rows)

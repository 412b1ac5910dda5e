"""The order in which the tokens of a batch of captions are computed: word after word."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from captioning.kernels.ops import Rows
from captioning.support.special_tokens import PAD

ROW_MULTIPLE = 16
"""The number of rows at a word is rounded up to a multiple of this, in large batches.

Captions end at different words, so that the number of rows would be different at almost every word.
For every new shape of a matrix product oneDNN generates code, which takes longer than the product.
A few additional rows, of captions that have ended, reduce the number of shapes.
"""


class Packed(NamedTuple):
    """The tokens of some captions, word after word: all first words, all second words, ...

    Attributes:
        rows: the caption of each row.
        counts: the number of rows at the first word, at the second word, ...; the rows at a word
            are always a prefix of all rows.
        inputs: N, the tokens that are read.
        targets: N, the tokens to be predicted; padding where the caption of a row has ended.
        positions: N, the index of each target in the flattened B x K x T.
        lengths: B x K, the number of targets of each caption.
        max_length: T, the number of targets for which the tokens have room.
    """

    rows: Rows
    counts: list[int]
    inputs: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    lengths: Int[Tensor, "images captions"]
    max_length: int

    def to(self, device: torch.device) -> "Packed":
        """Move all tensors to a device."""
        index, inputs, targets, positions, lengths = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.rows.index, self.inputs, self.targets, self.positions, self.lengths)
        )
        rows = self.rows._replace(index=index)
        return Packed(rows, self.counts, inputs, targets, positions, lengths, self.max_length)


def pack(tokens: Int[Tensor, "images captions length"]) -> Packed:
    """Order the tokens of captions (``<start>`` ... ``<end>``, 0-padded).

    If the tokens are in the CPU's memory, captions that have ended are left out. If they are on a
    GPU, every caption is computed at every word, because counting would synchronise with the GPU.
    Without any word to compute, there is one word that no caption has, so that ``counts`` is never
    empty.
    """
    return _pack_live(tokens) if tokens.device.type == "cpu" else _pack_all(tokens)


def _pack_live(tokens: Int[Tensor, "images captions length"]) -> Packed:
    """Leave padding out, except for the rows that fill up :data:`ROW_MULTIPLE`."""
    images, captions, length = tokens.shape
    max_length = max(length - 1, 0)
    tokens = tokens.flatten(0, 1)
    lengths = (tokens[:, 1:] != PAD).sum(1)
    # Longest first, so that the captions that still have a word are a prefix of the rows.
    index = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
    real = (tokens[index, 1:] != PAD).sum(0)
    counts = _rounded_up(real[real > 0], len(index))
    words = len(counts)
    computed = torch.arange(len(index), device=index.device) < counts[:, None]  # words x rows
    word = torch.arange(words, device=index.device)[:, None]
    positions = index * max_length + word
    return Packed(
        Rows(index, images, captions),
        counts.tolist() or [0],
        tokens[index, :words].T[computed],
        tokens[index, 1 : words + 1].T[computed],
        positions[computed],
        lengths.view(images, captions),
        max_length,
    )


def _pack_all(tokens: Int[Tensor, "images captions length"]) -> Packed:
    """Keep every caption at every word, so that the result depends on the shape alone."""
    images, captions, length = tokens.shape
    max_length = max(length - 1, 0)
    counts = [images * captions] * max_length or [0]
    rows = Rows.all(images, captions, tokens.device).head(counts[0])
    words = torch.arange(max_length, device=tokens.device)
    tokens = tokens.flatten(0, 1)
    return Packed(
        rows,
        counts,
        tokens[:, :-1].T.flatten(),
        tokens[:, 1:].T.flatten(),
        (rows.index * max_length + words[:, None]).flatten(),
        (tokens[:, 1:] != PAD).sum(1).view(images, captions),
        max_length,
    )


def distinct(
    tokens: Int[Tensor, " rows"],
) -> tuple[Int[Tensor, " words"], Int[Tensor, " rows"]] | None:
    """The words among some tokens, and the place of each token among them.

    Partial captions of many images read the same few words, so that what depends on a word alone is
    computed once. The words are filled up with padding to a multiple of :data:`ROW_MULTIPLE`.

    Returns:
        None on a GPU, with which counting would synchronise, and while a model is exported, when
        shapes may not depend on values.
    """
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    words, places = tokens.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return torch.nn.functional.pad(words, (0, -len(words) % ROW_MULTIPLE), value=PAD), places


def _rounded_up(counts: Int[Tensor, " words"], rows: int) -> Int[Tensor, " words"]:
    """Round numbers of rows up to a multiple of :data:`ROW_MULTIPLE`, but not above ``rows``."""
    if rows < 4 * ROW_MULTIPLE:
        return counts
    return ((counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE).clamp(max=rows)

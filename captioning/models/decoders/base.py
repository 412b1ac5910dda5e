"""What every caption decoder offers: the contract that training and decoding are written against.

A decoder describes B images at once, each with K captions side by side: the K captions of an image
in training, the K beams of it in decoding. What is computed from an image alone (its **memory**) is
kept once for all of them, with leading size B; what belongs to a caption (its **state**) has
leading sizes B x K. Both are plain dictionaries of tensors, so that decoding can select images
and reorder beams without knowing what is inside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.kernels.dropout import Dropout
from captioning.kernels.grid import standardize
from captioning.kernels.unrolled import Unrolled
from captioning.models.attention.additive import Rows
from captioning.support.errors import CaptioningError

Linear = Callable[[nn.Linear, Tensor], Tensor]
Memory = dict[str, Tensor]
State = dict[str, Tensor]


class Step(NamedTuple):
    """One more word for each caption.

    Attributes:
        logits: B x K x V, scores of the next word before the softmax.
        state: the state after this word.
        attention: B x K x P, the weights that this step looked with; None without attention.
    """

    logits: Tensor
    state: State
    attention: Tensor | None


class TeacherForced(NamedTuple):
    """The predictions for real captions, each word given the true words before it.

    Attributes:
        logits: N x V, for N tokens, in the order of ``targets``.
        targets: N, the true next tokens, each once; and padding, which does not count, where there
            are rows of other captions besides (see :data:`ROUND`).
        coverage: B x K x P, the attention that each location got, summed over a caption's words;
            None without attention.
        lengths: B x K, how many targets each caption has (0 where an image has fewer captions).
    """

    logits: Tensor
    targets: Tensor
    coverage: Tensor | None
    lengths: Tensor


class Decoder(nn.Module, ABC):
    """A model of captions given the grid of an image. Token 0 is padding everywhere."""

    vocabulary_size: int

    @abstractmethod
    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """All that is computed from the images alone, once for all their captions."""

    @abstractmethod
    def start(self, memory: Memory, captions: int) -> State:
        """The state before the first word, of ``captions`` captions an image."""

    @abstractmethod
    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        """Read one token of each caption and predict the next."""

    @abstractmethod
    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        """Predict every next token of the given captions (``<start>`` ... ``<end>``, 0-padded).

        Tokens may stay in the CPU's memory where the grid is on a GPU: what their lengths decide
        is then known without waiting for the GPU. Of tokens on a GPU nothing is known beforehand,
        and padding is computed, too, to no effect.
        """


PAD = 0
"""The padding token, as in :class:`captioning.data.text.Vocabulary`."""

ROUND = 16
"""What the rows of a word are a multiple of, where there are many.

As captions end, each word of each batch would have a number of rows of its own; and for every new
shape of a matrix product, oneDNN writes code, which takes longer than the product. A few rows more,
of captions that have ended, keep to few shapes.
"""


class RecurrentDecoder(Decoder):
    """An LSTM that writes captions; subclasses say what else it sees than its last word.

    What does not depend on the state is taken out of the loop over words: the embeddings' share of
    the gates is one product for all words, and so is the vocabulary product. The loop runs at each
    word over the captions that still have one; nothing is computed for padding.

    Args:
        vocabulary_size: number of tokens (V), special ones included.
        channels: numbers a grid location has (C).
        hidden_dim: units of the LSTM (H).
        embed_dim: numbers of a word embedding, and of the deep output layer (E).
        dropout: share of the embedding and of the output layer that is dropped in training.
        recurrent_dropout: share of the state h_{t-1} that the next step does not see in training,
            one pattern for all words of a caption (Gal & Ghahramani 2016).
        word_dropout: share of the input words that are replaced by ``<unk>`` in training, which
            makes the model lean on the image rather than on the words before.
        tie_embeddings: use the embedding matrix as the output matrix L_o, too.
        normalize_grid: standardise each location's channels (LayerNorm without parameters, which
            the products that follow would absorb).
        query_dim: further numbers that a subclass wants of each word, beside its share of the
            gates; :meth:`advance` gets both in one tensor.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        hidden_dim: int = 512,
        embed_dim: int = 512,
        dropout: float = 0.5,
        recurrent_dropout: float = 0.0,
        word_dropout: float = 0.0,
        tie_embeddings: bool = False,
        normalize_grid: bool = True,
        query_dim: int = 0,
    ) -> None:
        super().__init__()
        check_settings(
            sizes={"hidden_dim": hidden_dim, "embed_dim": embed_dim},
            shares={
                "dropout": dropout,
                "recurrent_dropout": recurrent_dropout,
                "word_dropout": word_dropout,
            },
        )
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.word_dropout = word_dropout
        self.normalize: nn.Module = (
            nn.LayerNorm(channels, elementwise_affine=False) if normalize_grid else nn.Identity()
        )
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5 if tie_embeddings else 0.1)
        self.initial_hidden = nn.Linear(channels, hidden_dim)
        self.initial_cell = nn.Linear(channels, hidden_dim)
        self.input_gates = nn.Linear(embed_dim, 4 * hidden_dim + query_dim)
        self.output_hidden = nn.Linear(hidden_dim, embed_dim)
        self.output_words = nn.Linear(embed_dim, vocabulary_size)
        if tie_embeddings:
            self.output_words.weight = self.embedding.weight
        self.dropout = Dropout(dropout)
        self.recurrent_dropout = Dropout(recurrent_dropout)
        with torch.no_grad():  # a forget gate open at the start (Jozefowicz et al. 2015)
            self.input_gates.bias[hidden_dim : 2 * hidden_dim] += 1

    @abstractmethod
    def advance(
        self, gates: Tensor, state: State, memory: Memory, rows: Rows, linear: Linear
    ) -> State:
        """The state after a word, of which ``input_gates`` has made ``gates`` (rows x 4H).

        The new state holds ``hidden`` and ``cell`` (rows x H), and with attention ``context``
        (rows x C) and ``attention`` (rows x P) of this word. ``linear(layer, x)`` is ``layer(x)``.
        """

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        device, dtype = grid.device.type, torch.float32
        if torch.is_autocast_enabled(device):  # products want it so: once, and not at every word
            dtype = torch.get_autocast_dtype(device)
        grid, mean = standardize(grid, self.normalize, dtype)
        return {"mean": mean, "grid": grid}

    def first(self, memory: Memory, rows: Rows) -> State:
        """h_0 and c_0 from the mean of the grid (Xu et al. 2015, section 3.1.2)."""
        mean = memory["mean"]
        image = rows.image
        return {
            "hidden": self.initial_hidden(mean).tanh()[image],
            "cell": self.initial_cell(mean).float()[image],
        }

    def start(self, memory: Memory, captions: int) -> State:
        mean = memory["mean"]
        images = len(mean)
        state = self.first(memory, Rows.all(images, captions, mean.device))
        return {name: by_image(value, images, captions) for name, value in state.items()}

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        images, captions = tokens.shape
        rows = Rows.all(images, captions, tokens.device)
        words = tokens.flatten()
        if self.training:  # each has a dropout of its own
            embedded = self.dropout(self.embedding(words))
            gates = self.input_gates(embedded)
        else:  # of the beams of many images, most end in one of few words
            words, which = torch.unique(words, return_inverse=True)
            words = nn.functional.pad(words, (0, -len(words) % ROUND))
            embedded = self.embedding(words)
            gates = self.input_gates(embedded).index_select(0, which)
            embedded = embedded.index_select(0, which)
        state = {name: value.flatten(0, 1) for name, value in state.items()}
        state = self.advance(gates, state, memory, rows, apply)
        logits = self.read_out(embedded, state["hidden"], state.pop("context", None))
        state = {name: by_image(value, images, captions) for name, value in state.items()}
        return Step(by_image(logits, images, captions), state, state.pop("attention", None))

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        images, captions, _ = tokens.shape
        memory = self.prepare(grid)
        tokens = tokens.flatten(0, 1)
        layout = (packed if tokens.device.type == "cpu" else dense)(tokens).to(grid.device)
        rows = Rows(layout.place, captions)
        embedded = self.dropout(self.embedding(self.drop_words(layout.inputs)))
        state = self.first(memory, rows)
        seen = None
        if self.recurrent_dropout.p:
            seen = self.recurrent_dropout(torch.ones_like(state["hidden"]))
        states: list[State] = []
        linear = Unrolled()
        for gates in torch.split(self.input_gates(embedded), layout.counts):
            live = len(gates)
            state = {name: first_rows(value, live) for name, value in state.items()}
            if seen is not None:
                state["hidden"] = state["hidden"] * seen[:live]
            state = self.advance(gates, state, memory, rows.first(live), linear)
            states.append(state)

        def of_all_words(name: str) -> Tensor | None:
            return torch.cat([state[name] for state in states]) if name in state else None

        hidden, attention = of_all_words("hidden"), of_all_words("attention")
        assert hidden is not None
        coverage = None
        if attention is not None:
            attention = attention * (layout.targets != PAD)[:, None]
            looked = sum_over_words(torch.split(attention, layout.counts))
            coverage = rows.spread(looked, images)
        return TeacherForced(
            self.read_out(embedded, hidden, of_all_words("context")),
            layout.targets,
            coverage,
            layout.lengths.view(images, captions),
        )

    def drop_words(self, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """In training, replace a share of the words (not the special tokens) by ``<unk>`` (3)."""
        if not self.training or self.word_dropout == 0:
            return tokens
        dropped = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
        return tokens.masked_fill(dropped & (tokens > 3), 3)

    def read_out(self, embedded: Tensor, hidden: Tensor, context: Tensor | None) -> Tensor:
        """The deep output L_o (E y + L_h h + L_z z) (Xu et al. 2015, eq. 7)."""
        features = embedded + self.output_hidden(hidden)
        if context is not None:
            features = features + self.read_context(context)
        logits: Tensor = self.output_words(self.dropout(features))
        return logits

    def read_context(self, context: Tensor) -> Tensor:
        """L_z z of the deep output."""
        raise TypeError(f"{type(self).__name__} has a context but no read_context")


class Layout(NamedTuple):
    """In which order the words of captions are computed: the first of all, the second of all, ...

    Attributes:
        place: the captions' places, in the order of the rows.
        counts: how many rows have a first word, a second, ...; always the first so many.
        inputs: N, the tokens that are read, word after word.
        targets: N, those to be predicted; 0 where a row has none.
        lengths: how many targets each caption has, in the order of their places.
    """

    place: Int[Tensor, " rows"]
    counts: list[int]
    inputs: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " captions"]

    def to(self, device: torch.device) -> "Layout":
        """The same on a device."""
        place, inputs, targets, lengths = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.place, self.inputs, self.targets, self.lengths)
        )
        return Layout(place, self.counts, inputs, targets, lengths)


def packed(tokens: Int[Tensor, "captions length"]) -> Layout:
    """With nothing for padding, but for :data:`ROUND`: captions that have ended leave the rows."""
    lengths = (tokens[:, 1:] != PAD).sum(1)
    # Longest first, so that the captions that still have a word are the first rows.
    place = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
    real = (tokens[place, 1:] != PAD).sum(0)
    counts = round_up(real[real > 0], len(place))
    mask = torch.arange(len(place), device=tokens.device) < counts[:, None]
    words = len(counts)
    inputs, targets = tokens[place, :words].T[mask], tokens[place, 1 : words + 1].T[mask]
    return Layout(place, counts.tolist(), inputs, targets, lengths)


def dense(tokens: Int[Tensor, "captions length"]) -> Layout:
    """With every caption at every word, of which nothing but the shape has to be known."""
    captions, length = tokens.shape
    return Layout(
        torch.arange(captions, device=tokens.device),
        [captions] * (length - 1),
        tokens[:, :-1].T.flatten(),
        tokens[:, 1:].T.flatten(),
        (tokens[:, 1:] != PAD).sum(1),
    )


def round_up(counts: Int[Tensor, " words"], most: int) -> Int[Tensor, " words"]:
    """Rows that are computed for so many real ones: see :data:`ROUND`."""
    if most < 4 * ROUND:
        return counts
    return ((counts + ROUND - 1) // ROUND * ROUND).clamp(max=most)


def check_settings(sizes: Mapping[str, int], shares: Mapping[str, float]) -> None:
    """Refuse sizes below 1 and shares outside of 0 to 1.

    Raises:
        CaptioningError: naming the setting.
    """
    for name, size in sizes.items():
        if size < 1:
            raise CaptioningError(f"model.{name}={size}: choose 1 or more.")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise CaptioningError(f"model.{name}={share}: choose a share between 0 and 1.")


def apply(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``."""
    product: Tensor = layer(x)
    return product


def first_rows(rows: Tensor, count: int) -> Tensor:
    """The first rows; without a copy in the backward pass where that is all."""
    return rows if count == len(rows) else rows[:count]


def by_image(rows: Tensor, images: int, captions: int) -> Tensor:
    """The rows of all captions of all images as B x K x ...."""
    return rows.view(images, captions, *rows.shape[1:])


def sum_over_words(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors with ever fewer rows, the missing ones being zero."""
    total = parts[-1]
    for part in reversed(parts[:-1]):
        missing = len(part) - len(total)
        total = part + (nn.functional.pad(total, (0, 0, 0, missing)) if missing else total)
    return total

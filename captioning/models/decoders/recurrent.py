"""The loop over words that all recurrent decoders share, and their output layer."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.kernels.ops import (
    Dropout,
    Rows,
    at_least_single,
    deferred_weight_gradients,
    product_dtype,
    standardize,
)
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.models.decoders.packing import distinct, pack
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD


class RecurrentDecoder(Decoder):
    """The base class of recurrent decoders; a subclass defines one step of the recurrence.

    Computations that do not depend on the state are outside of the loop over words: the projections
    of the words (:meth:`word_inputs`) and the logits are one product each for all words. At each
    word, the loop processes only the captions that have not ended.

    Args:
        vocabulary_size: number of tokens (V), special ones included.
        channels: channels of the grid (C).
        hidden_dim: units of the hidden state (H).
        embed_dim: size of the word embeddings and of the deep output layer (E).
        dropout: dropout probability of the embeddings and of the output layer.
        recurrent_dropout: dropout probability of the hidden state h_{t-1}, with one mask for all
            words of a caption (Gal and Ghahramani 2016).
        word_dropout: probability that an input word is replaced by ``<unk>`` in training, so that
            the model relies on the image rather than on the previous words.
        tie_embeddings: use the embedding matrix as the output matrix L_o, too.
        normalize_grid: standardise the channels of each location. This is a LayerNorm without
            parameters, which the following linear layers would absorb.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        hidden_dim: int = 512,
        embed_dim: int = 512,
        dropout: float = 0.5,
        recurrent_dropout: float = 0.2,
        word_dropout: float = 0.0,
        tie_embeddings: bool = False,
        normalize_grid: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(hidden_dim=hidden_dim, embed_dim=embed_dim)
        check_shares(
            dropout=dropout, recurrent_dropout=recurrent_dropout, word_dropout=word_dropout
        )
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.embed_dim = embed_dim
        self.word_dropout = word_dropout
        self.normalize_grid = normalize_grid
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5 if tie_embeddings else 0.1)
        self.output_hidden = nn.Linear(hidden_dim, embed_dim)
        self.output_words = nn.Linear(embed_dim, vocabulary_size)
        if tie_embeddings:
            self.output_words.weight = self.embedding.weight
        self.dropout = Dropout(dropout)
        self.recurrent_dropout = Dropout(recurrent_dropout)

    @abstractmethod
    def init_state(self, memory: Memory) -> State:
        """The state before the first word of each image (B x ...), with ``hidden`` (B x H)."""

    @abstractmethod
    def word_inputs(self, embedded: Float[Tensor, "tokens embed"]) -> dict[str, Tensor]:
        """The part of a step that depends on its input words alone, for many words at once.

        Returns:
            Tensors by name, which :meth:`recurrent_step` gets with one row for each word it reads.
        """

    @abstractmethod
    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        """The state after one more word.

        Args:
            inputs: :meth:`word_inputs` of the words that are read, one row per caption.
            state: the previous state, one row per caption.
            memory: the memory of the images.
            rows: the caption of each row.

        Returns:
            The new state, with ``hidden`` (rows x H) and, with attention, ``context`` (rows x C)
            and ``attention`` (rows x P, the weights). A decoder that samples locations has
            ``location`` (rows), as in :class:`TeacherForced`. These three are results, which the
            next step does not get; all other names are given to it.
        """

    def read_out(self, states: Sequence[State], memory: Memory, rows: Sequence[Rows]) -> State:
        """Everything that is known of some words after the recurrence, for the output layer.

        A decoder that attends after the recurrence, with the new state, does so here for many words
        at once.

        Args:
            states: the state after each word.
            memory: the memory of the images.
            rows: the captions that have each word.

        Returns:
            The states of all words, one after another: as from :meth:`recurrent_step`.
        """
        if len(states) == 1:
            return states[0]
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        if self.normalize_grid:
            grid, mean = standardize(grid)
        else:
            mean = at_least_single(grid).mean(1)
            grid = grid.to(product_dtype(grid))
        return {"grid": grid, "mean": mean}

    def start(self, memory: Memory, captions: int) -> State:
        state = self.init_state(memory)
        return {
            name: value[:, None].repeat_interleave(captions, 1) for name, value in state.items()
        }

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        images, captions = tokens.shape
        rows = Rows.all(images, captions, tokens.device)
        embedded, inputs = self.read(tokens.flatten())
        state = {name: value.flatten(0, 1) for name, value in state.items()}
        state = self.recurrent_step(inputs, state, memory, rows)
        state = self.read_out([state], memory, [rows])
        logits = self.output_logits(embedded, state["hidden"], state.pop("context", None))
        state.pop("location", None)
        by_image = {
            name: value.unflatten(0, (images, captions))  # type: ignore[no-untyped-call]
            for name, value in (state | {"logits": logits}).items()
        }
        return Step(by_image.pop("logits"), by_image, by_image.pop("attention", None))

    def read(
        self, tokens: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows embed"], dict[str, Tensor]]:
        """The embeddings of tokens, and their :meth:`word_inputs`: once for each word if possible.

        With dropout, each token has a mask of its own.
        """
        found = distinct(tokens) if is_off(self.dropout) else None
        if found is None:
            embedded = self.dropout(self.embedding(tokens))
            return embedded, self.word_inputs(embedded)
        words, places = found
        embedded = self.embedding(words)
        inputs = self.word_inputs(embedded)
        return embedded.index_select(0, places), {
            name: value.index_select(0, places) for name, value in inputs.items()
        }

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        memory = self.prepare(grid)
        packed = pack(tokens).to(grid.device)
        rows = packed.rows
        embedded = self.dropout(self.embedding(self.drop_words(packed.inputs)))
        inputs = self.word_inputs(embedded)
        state = {name: value[rows.image] for name, value in self.init_state(memory).items()}
        keep = None
        if not is_off(self.recurrent_dropout):
            keep = self.recurrent_dropout(torch.ones_like(state["hidden"]))
        words = self.recur(inputs, state, keep, memory, rows, packed.counts)
        weights, coverage = words.get("attention"), None
        if weights is not None:
            real = weights * (packed.targets != PAD)[:, None]
            coverage = rows.scatter(sum_over_words(real.split(packed.counts)))  # type: ignore[no-untyped-call]
        return TeacherForced(
            self.output_logits(embedded, words["hidden"], words.get("context")),
            packed.targets,
            packed.positions,
            packed.lengths,
            packed.max_length,
            coverage,
            weights,
            words.get("location"),
        )

    def recur(
        self,
        inputs: Mapping[str, Float[Tensor, "tokens _"]],
        state: State,
        keep: Float[Tensor, "rows hidden"] | None,
        memory: Memory,
        rows: Rows,
        counts: Sequence[int],
    ) -> State:
        """Process all words of some captions, one after another.

        Args:
            inputs: :meth:`word_inputs` of all words: all first words, all second words, ...
            state: the state before the first word, one row per caption.
            keep: by what h_{t-1} is multiplied at every word, the recurrent dropout; None without.
            memory: the memory of the images.
            rows: the caption of each row.
            counts: how many captions have each word; they are the first rows.

        Returns:
            The states of all words, as from :meth:`read_out`.
        """
        split = {name: value.split([*counts]) for name, value in inputs.items()}  # type: ignore[no-untyped-call]
        states: list[State] = []
        with deferred_weight_gradients():
            for word, count in enumerate(counts):
                state = {name: head(value, count) for name, value in state.items()}
                if keep is not None:
                    state["hidden"] = state["hidden"] * head(keep, count)
                read = {name: values[word] for name, values in split.items()}
                state = self.recurrent_step(read, state, memory, rows.head(count))
                states.append(state)
        return self.read_out(states, memory, [rows.head(count) for count in counts])

    def output_logits(
        self,
        embedded: Float[Tensor, "tokens embed"],
        hidden: Float[Tensor, "tokens hidden"],
        context: Float[Tensor, "tokens channels"] | None,
    ) -> Float[Tensor, "tokens words"]:
        """The deep output L_o (E y + L_h h) (Xu et al. 2015, eq. 7, without its context)."""
        del context
        logits: Tensor = self.output_words(self.dropout(embedded + self.output_hidden(hidden)))
        return logits


def head(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` rows; if these are all, the tensor itself, which saves a copy."""
    return rows if count == len(rows) else rows[:count]


def is_off(layer: nn.Module) -> bool:
    """Whether a layer is a dropout that changes nothing at present."""
    return isinstance(layer, nn.Dropout) and not (layer.training and layer.p)


def sum_over_words(parts: Sequence[Float[Tensor, "_ size"]]) -> Float[Tensor, "rows size"]:
    """The sum of tensors whose number of rows decreases; missing rows count as zero."""
    total = parts[-1]
    for part in reversed(parts[:-1]):
        missing = len(part) - len(total)
        total = part + (nn.functional.pad(total, (0, 0, 0, missing)) if missing else total)
    return total


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        CaptioningError: a size is below 1; the message names the setting.
    """
    for name, size in sizes.items():
        if size < 1:
            raise CaptioningError(f"model.{name}={size}: choose 1 or more.")


def check_shares(**shares: float) -> None:
    """Refuse probabilities and other shares outside of 0 to 1.

    Raises:
        CaptioningError: a share is out of range; the message names the setting.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise CaptioningError(f"model.{name}={share}: choose a number between 0 and 1.")

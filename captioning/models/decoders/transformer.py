"""A Transformer decoder over the grid (Vaswani et al. 2017), with layer normalisation first."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from captioning.kernels.ops import Dropout, at_least_single, product_dtype, standardize
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.models.decoders.packing import pack
from captioning.models.decoders.recurrent import check_shares, check_sizes
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD

KeysValues = tuple[Tensor, Tensor]
"""The keys and the values of words or locations, ... x heads x positions x size."""


class Words(NamedTuple):
    """The words that are computed, of all captions of a batch.

    Linear layers compute one row for each of them. Attention takes the words of a caption in their
    order, images x captions x words, with zeros where a caption has ended.

    Attributes:
        images: number of images (B).
        captions: number of captions of each image (K).
        length: number of words of the longest caption (T).
        positions: the index of each row in the flattened B x K x T; None if all are there.
    """

    images: int
    captions: int
    length: int
    positions: Int[Tensor, " rows"] | None = None

    def pad(
        self, rows: Float[Tensor, "rows units"]
    ) -> Float[Tensor, "images captions words units"]:
        """Arrange rows as images x captions x words."""
        if self.positions is not None:
            padded = rows.new_zeros(self.images * self.captions * self.length, rows.shape[1])
            rows = padded.index_copy(0, self.positions, rows)
        return rows.view(self.images, self.captions, self.length, rows.shape[1])

    def unpad(
        self, padded: Float[Tensor, "images captions words units"]
    ) -> Float[Tensor, "rows units"]:
        """The rows again."""
        flat = padded.flatten(0, 2)
        return flat if self.positions is None else flat.index_select(0, self.positions)


class TransformerLayer(nn.Module):
    """Causal self-attention over the words, attention over the grid, and a feed-forward network.

        x = x + SelfAttention(LayerNorm(x))
        x = x + GridAttention(LayerNorm(x), grid)
        x = x + W_2 gelu(W_1 LayerNorm(x))

    Args:
        hidden_dim: size of the words' states (H).
        heads: number of attention heads, a divisor of H.
        feed_forward_dim: units of the feed-forward network.
        dropout: dropout probability of what each of the three parts adds, and of the units of the
            feed-forward network.
    """

    static = True

    def __init__(self, hidden_dim: int, heads: int, feed_forward_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm = nn.LayerNorm(hidden_dim)
        self.self_projection = nn.Linear(hidden_dim, 3 * hidden_dim)  # queries, keys and values
        self.self_output = nn.Linear(hidden_dim, hidden_dim)
        self.grid_norm = nn.LayerNorm(hidden_dim)
        self.grid_query = nn.Linear(hidden_dim, hidden_dim)
        self.grid_projection = nn.Linear(hidden_dim, 2 * hidden_dim)  # keys and values
        self.grid_output = nn.Linear(hidden_dim, hidden_dim)
        self.forward_norm = nn.LayerNorm(hidden_dim)
        self.forward_hidden = nn.Linear(hidden_dim, feed_forward_dim)
        self.forward_output = nn.Linear(feed_forward_dim, hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        states: Float[Tensor, "rows hidden"],
        words: Words,
        grid: KeysValues,
        earlier: KeysValues | None = None,
    ) -> tuple[
        Float[Tensor, "rows hidden"],
        KeysValues,
        Float[Tensor, "images captions words locations"],
    ]:
        """Process some words of each caption.

        Args:
            states: of the words.
            words: which words these are.
            grid: keys and values of the locations, from :meth:`grid_keys_values`.
            earlier: keys and values of the words before these, images x captions x heads x words x
                size; None if these are the first ones.

        Returns:
            The new states, the keys and values of all words so far, and the attention weights over
            the grid, as the mean over the heads; they sum to 1 over the locations.
        """
        added, keys_values = self.attend_words(states, words, earlier)
        states = states + self.dropout(added)
        added, weights = self.attend_grid(states, words, grid)
        states = states + self.dropout(added)
        hidden = self.dropout(gelu(self.forward_hidden(self.forward_norm(states))))
        return states + self.dropout(self.forward_output(hidden)), keys_values, weights

    def attend_words(
        self,
        states: Float[Tensor, "rows hidden"],
        words: Words,
        earlier: KeysValues | None,
    ) -> tuple[Float[Tensor, "rows hidden"], KeysValues]:
        """Self-attention, in which a word sees itself and the words before it."""
        projected = words.pad(self.self_projection(self.self_norm(states)))
        query, keys, values = map(self.split_heads, projected.chunk(3, -1))
        if earlier is not None:
            keys = torch.cat([earlier[0].to(keys.dtype), keys], -2)
            values = torch.cat([earlier[1].to(values.dtype), values], -2)
        found, _ = attend(query, keys, values, causal=True)
        joined = words.unpad(found.transpose(-3, -2).flatten(-2))
        return self.self_output(joined), (keys, values)

    def attend_grid(
        self,
        states: Float[Tensor, "rows hidden"],
        words: Words,
        grid: KeysValues,
    ) -> tuple[
        Float[Tensor, "rows hidden"],
        Float[Tensor, "images captions words locations"],
    ]:
        """Attention over the locations, for the words of all captions of an image together."""
        # images x heads x (captions * words) x size
        query = self.split_heads(words.pad(self.grid_query(self.grid_norm(states))).flatten(1, 2))
        found, weights = attend(query, *grid)
        shape = words.images, words.captions, words.length
        joined = words.unpad(found.transpose(-3, -2).flatten(-2).view(*shape, states.shape[1]))
        return self.grid_output(joined), weights.mean(1).view(*shape, weights.shape[-1])

    def grid_keys_values(self, grid: Float[Tensor, "images locations hidden"]) -> KeysValues:
        """The keys and the values of the locations of each image.

        They are contiguous, as products would copy them at every word otherwise.
        """
        keys, values = map(self.split_heads, self.grid_projection(grid).chunk(2, -1))
        return keys.contiguous(), values.contiguous()

    def split_heads(
        self, states: Float[Tensor, "*batch positions hidden"]
    ) -> Float[Tensor, "*batch heads positions size"]:
        """Divide the units of each state among the heads."""
        return states.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # type: ignore[no-untyped-call,no-any-return]


def attend(
    query: Float[Tensor, "*batch heads words size"],
    keys: Float[Tensor, "*batch heads positions size"],
    values: Float[Tensor, "*batch heads positions size"],
    *,
    causal: bool = False,
) -> tuple[Float[Tensor, "*batch heads words size"], Float[Tensor, "*batch heads words positions"]]:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), and its weights.

    PyTorch's fused function is not used: on a CPU, its backward pass took a quarter of a step.

    Args:
        query: of each word.
        keys: of each position.
        values: of each position.
        causal: the words are the last positions, and a word does not see the positions after it.
    """
    scores = at_least_single((query * query.shape[-1] ** -0.5) @ keys.mT)
    if causal:
        words, positions = scores.shape[-2:]
        later = torch.ones(words, positions, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(later.triu(positions - words + 1), -torch.inf)
    weights = scores.softmax(-1)
    return weights.to(values.dtype) @ values, weights


class TransformerDecoder(Decoder):
    """A Transformer that predicts each word from the words before it and the grid.

    The attention weights of a word are those of the last layer, whose result is the nearest to the
    word, as the mean over its heads. The keys and values of the grid are computed once for an
    image, and those of earlier words are kept in the state. In teacher forcing, linear layers
    compute nothing for the padding of a batch in the CPU's memory.

    Args:
        vocabulary_size: number of tokens (V), special ones included.
        channels: channels of the grid (C).
        hidden_dim: size of embeddings and states (H).
        layers: number of layers.
        heads: number of attention heads, a divisor of H.
        feed_forward_dim: units of the feed-forward networks.
        dropout: dropout probability of the embeddings, of the projected grid and within the layers.
        word_dropout: probability that an input word is replaced by ``<unk>`` in training.
        tie_embeddings: use the embedding matrix as the output matrix, too.
        normalize_grid: standardise the channels of each location.
    """

    static = True

    layers: Sequence[TransformerLayer]

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        hidden_dim: int = 512,
        layers: int = 2,
        heads: int = 8,
        feed_forward_dim: int = 1024,
        dropout: float = 0.3,
        word_dropout: float = 0.0,
        tie_embeddings: bool = True,
        normalize_grid: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(
            hidden_dim=hidden_dim, layers=layers, heads=heads, feed_forward_dim=feed_forward_dim
        )
        check_shares(dropout=dropout, word_dropout=word_dropout)
        if hidden_dim % heads or hidden_dim % 2:
            raise CaptioningError(
                f"model.hidden_dim={hidden_dim} must be even and a multiple of model.heads={heads}."
            )
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.word_dropout = word_dropout
        self.normalize_grid = normalize_grid
        self.embedding = nn.Embedding(vocabulary_size, hidden_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=hidden_dim**-0.5)
        self.grid_input = nn.Linear(channels, hidden_dim)
        stacked = [
            TransformerLayer(hidden_dim, heads, feed_forward_dim, dropout) for _ in range(layers)
        ]
        self.layers = nn.ModuleList(stacked)  # type: ignore[assignment]  # a sequence of its items
        self.norm = nn.LayerNorm(hidden_dim)
        self.output_words = nn.Linear(hidden_dim, vocabulary_size)
        if tie_embeddings:
            self.output_words.weight = self.embedding.weight
        self.dropout = Dropout(dropout)

    @property
    def names(self) -> list[tuple[str, str]]:
        """The names of the keys and values of each layer, in the memory and in the state."""
        return [(f"keys{number}", f"values{number}") for number in range(len(self.layers))]

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """The keys and values of the locations in each layer, images x heads x locations x size."""
        if self.normalize_grid:
            grid, _ = standardize(grid)
        else:
            grid = grid.to(product_dtype(grid))
        projected = self.dropout(self.grid_input(grid))
        memory: Memory = {}
        for (keys, values), layer in zip(self.names, self.layers, strict=True):
            memory[keys], memory[values] = layer.grid_keys_values(projected)
        return memory

    def start(self, memory: Memory, captions: int) -> State:
        """The keys and values of no words in each layer: images x captions x heads x 0 x size."""
        images, heads, _, size = memory["keys0"].shape
        none = memory["keys0"].new_zeros(images, captions, heads, 0, size)
        return {name: none for names in self.names for name in names}

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        images, captions = tokens.shape
        words = Words(images, captions, 1)
        place = torch.full((1,), state["keys0"].shape[-2], device=tokens.device)
        states, new = self.embed(tokens.flatten(), place), {}
        for (keys, values), layer in zip(self.names, self.layers, strict=True):
            grid, earlier = (memory[keys], memory[values]), (state[keys], state[values])
            states, (new[keys], new[values]), weights = layer(states, words, grid, earlier)
        logits = self.output_words(self.norm(states)).view(images, captions, -1)
        return Step(logits, new, weights.squeeze(2))

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        memory = self.prepare(grid)
        images, captions, _ = tokens.shape
        packed = pack(tokens).to(grid.device)
        length = packed.max_length
        words = Words(images, captions, length, packed.positions)
        states = self.embed(self.drop_words(packed.inputs), packed.positions % length)
        for (keys, values), layer in zip(self.names, self.layers, strict=True):
            states, _, weights = layer(states, words, (memory[keys], memory[values]))
        real = words.pad((packed.targets != PAD).to(weights.dtype)[:, None])  # 1 or 0
        return TeacherForced(
            self.output_words(self.norm(states)),
            packed.targets,
            packed.positions,
            packed.lengths,
            length,
            coverage=(weights * real).sum(2),
            attention=words.unpad(weights),
        )

    def embed(
        self, tokens: Int[Tensor, " rows"], places: Int[Tensor, " places"]
    ) -> Float[Tensor, "rows hidden"]:
        """Embeddings times sqrt(H), plus sinusoidal positions (Vaswani et al. 2017, section 3.5).

        Args:
            tokens: the words.
            places: the place of each word in its caption, from 0; or one that all have.
        """
        units = torch.arange(0, self.hidden_dim, 2, device=tokens.device)
        angles = places[:, None] * torch.exp(units * (-math.log(10000.0) / self.hidden_dim))
        positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        embedded = self.embedding(tokens) * math.sqrt(self.hidden_dim)
        states: Tensor = self.dropout(embedded + positions.to(embedded.dtype))
        return states

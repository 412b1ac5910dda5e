"""A Transformer decoder over the grid (Vaswani et al. 2017), with layer normalisation first."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from captioning.kernels.ops import Dropout, at_least_single, product_dtype, standardize
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.models.decoders.recurrent import check_shares, check_sizes
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD, UNK


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
        states: Float[Tensor, "images captions words hidden"],
        grid: Float[Tensor, "images 2 heads locations size"],
        earlier: Float[Tensor, "images captions 2 heads earlier size"] | None = None,
    ) -> tuple[
        Float[Tensor, "images captions words hidden"],
        Float[Tensor, "images captions 2 heads all size"],
        Float[Tensor, "images captions words locations"],
    ]:
        """Process some words of each caption.

        Args:
            states: of the words.
            grid: keys and values of the locations, from :meth:`grid_keys_values`.
            earlier: keys and values of the words before these; None if these are the first ones.

        Returns:
            The new states, the keys and values of all words so far, and the attention weights over
            the grid, as the mean over the heads; they sum to 1 over the locations.
        """
        added, keys_values = self.attend_words(states, earlier)
        states = states + self.dropout(added)
        added, weights = self.attend_grid(states, grid)
        states = states + self.dropout(added)
        hidden = self.dropout(gelu(self.forward_hidden(self.forward_norm(states))))
        return states + self.dropout(self.forward_output(hidden)), keys_values, weights

    def attend_words(
        self,
        states: Float[Tensor, "images captions words hidden"],
        earlier: Float[Tensor, "images captions 2 heads earlier size"] | None,
    ) -> tuple[
        Float[Tensor, "images captions words hidden"],
        Float[Tensor, "images captions 2 heads all size"],
    ]:
        """Self-attention, in which a word sees itself and the words before it."""
        projected = self.self_projection(self.self_norm(states))
        query, key, value = map(self.split_heads, projected.chunk(3, -1))
        keys_values = torch.stack([key, value], 2)
        if earlier is not None:
            keys_values = torch.cat([earlier.to(keys_values.dtype), keys_values], -2)
        found, _ = attend(query, keys_values[:, :, 0], keys_values[:, :, 1], causal=True)
        joined = found.transpose(-3, -2).reshape(states.shape)
        return self.self_output(joined), keys_values

    def attend_grid(
        self,
        states: Float[Tensor, "images captions words hidden"],
        grid: Float[Tensor, "images 2 heads locations size"],
    ) -> tuple[
        Float[Tensor, "images captions words hidden"],
        Float[Tensor, "images captions words locations"],
    ]:
        """Attention over the locations, for the words of all captions of an image together."""
        # images x heads x (captions * words) x size
        query = self.split_heads(self.grid_query(self.grid_norm(states)).flatten(1, 2))
        found, weights = attend(query, grid[:, 0], grid[:, 1])
        joined = found.transpose(-3, -2).reshape(states.shape)
        return self.grid_output(joined), weights.mean(1).view(*states.shape[:3], -1)

    def grid_keys_values(
        self, grid: Float[Tensor, "images locations hidden"]
    ) -> Float[Tensor, "images 2 heads locations size"]:
        """The keys and the values of the locations of each image."""
        keys, values = map(self.split_heads, self.grid_projection(grid).chunk(2, -1))
        return torch.stack([keys, values], 1)

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
    scores = at_least_single(query @ keys.mT) * query.shape[-1] ** -0.5
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
    image, and those of earlier words are kept in the state.

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

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """Keys and values of the locations: images x layers x 2 x heads x locations x size."""
        if self.normalize_grid:
            grid, _ = standardize(grid)
        else:
            grid = grid.to(product_dtype(grid))
        projected = self.dropout(self.grid_input(grid))
        return {"grid": torch.stack([each.grid_keys_values(projected) for each in self.layers], 1)}

    def start(self, memory: Memory, captions: int) -> State:
        """No words: images x captions x layers x 2 x heads x 0 x size."""
        images, layers, _, heads, _, size = memory["grid"].shape
        return {"words": memory["grid"].new_zeros(images, captions, layers, 2, heads, 0, size)}

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        earlier = state["words"]
        states = self.embed(tokens[..., None], position=earlier.shape[-2])
        kept = []
        for number, layer in enumerate(self.layers):
            states, keys_values, weights = layer(
                states, memory["grid"][:, number], earlier[:, :, number]
            )
            kept.append(keys_values)
        logits = self.output_words(self.norm(states.squeeze(2)))
        return Step(logits, {"words": torch.stack(kept, 2)}, weights.squeeze(2))

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        memory = self.prepare(grid)
        targets = tokens[..., 1:]
        real = targets != PAD
        # Where that takes no synchronisation with a GPU, logits are computed for real targets only.
        in_cpu_memory = tokens.device.type == "cpu"
        positions = (real if in_cpu_memory else torch.ones_like(real)).flatten().nonzero()[:, 0]
        inputs, targets, real, positions = (
            each.to(grid.device, non_blocking=True)
            for each in (tokens[..., :-1], targets, real, positions)
        )
        states = self.embed(self.drop_words(inputs), position=0)
        for number, layer in enumerate(self.layers):
            states, _, weights = layer(states, memory["grid"][:, number])
        attention = weights * real[..., None]
        return TeacherForced(
            self.output_words(self.norm(states.flatten(0, 2)[positions])),
            targets.flatten()[positions],
            positions,
            real.sum(-1),
            targets.shape[-1],
            coverage=attention.sum(2),
            attention=attention.flatten(0, 2)[positions],
        )

    def embed(
        self, tokens: Int[Tensor, "images captions words"], position: int
    ) -> Float[Tensor, "images captions words hidden"]:
        """Embeddings times sqrt(H), plus sinusoidal positions (Vaswani et al. 2017, section 3.5).

        Args:
            tokens: the words.
            position: of the first word of them in its caption, from 0.
        """
        words = torch.arange(position, position + tokens.shape[-1], device=tokens.device)
        units = torch.arange(0, self.hidden_dim, 2, device=tokens.device)
        angles = words[:, None] * torch.exp(units * (-math.log(10000.0) / self.hidden_dim))
        positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        embedded = self.embedding(tokens) * math.sqrt(self.hidden_dim)
        states: Tensor = self.dropout(embedded + positions.to(embedded.dtype))
        return states

    def drop_words(
        self, tokens: Int[Tensor, "images captions words"]
    ) -> Int[Tensor, "images captions words"]:
        """In training, replace a share of the words (not the special tokens) by ``<unk>``."""
        if not self.training or self.word_dropout == 0:
            return tokens
        dropped = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
        return tokens.masked_fill(dropped & (tokens > UNK), UNK)

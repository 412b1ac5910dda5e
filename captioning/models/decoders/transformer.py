"""A Transformer decoder that attends to the locations of the grid (Vaswani et al. 2017)."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.kernels.ops import (
    Dropout,
    dot_product_attention,
    dot_product_attention_weights,
    product_dtype,
    standardize,
)
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.models.decoders.packing import pack
from captioning.models.decoders.recurrent import check_shares, check_sizes, drop_words
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD


class Transformer(Decoder):
    """A Transformer decoder with normalisation before each sublayer (Xiong et al. 2020).

    Each layer adds to its input x, in this order,

        x + MultiHead(LN(x), LN(x))     causal self-attention to the words so far
        x + MultiHead(LN(x), grid)      cross-attention to the locations of the image
        x + FFN(LN(x))                  feed-forward network

    and the logits are computed from LN(x) of the last layer. Cross-attention reads the grid itself;
    as a convolutional grid is computed with padding, its locations need no code of their position.

    The **attention weights** of a word are those of the last layer's cross-attention, averaged over
    the heads. They are what the word that is predicted next reads from the image directly, while
    the earlier layers look for what the following ones need; and the fused attention, which does
    not compute weights, can be used in all other layers.

    In decoding, the state holds the keys and values of the words so far, for each layer, so that a
    step computes one word. In teacher forcing, linear layers are applied to real words alone.

    Args:
        vocabulary_size: number of tokens (V), special ones included.
        channels: channels of the grid (C).
        layers: number of layers.
        heads: number of attention heads, a divisor of ``hidden_dim``.
        hidden_dim: size of the residual stream x (H).
        feedforward_dim: units of the feed-forward network; the default is twice ``hidden_dim``, and
            not four times, as data sets are small.
        activation: ``gelu``, FFN(x) = W_2 GELU(W_1 x), or ``swiglu``, FFN(x) =
            W_2 (SiLU(W_1 x) * W_3 x) with 2/3 of the units, so that both have as many parameters
            (Shazeer 2020).
        embed_dim: size of the word embeddings; None is ``hidden_dim``. If they differ, a product
            leads from embeddings to ``hidden_dim``, and another one back to the output layer (the
            factorised embeddings of Lan et al. 2020).
        positions: ``learned``, which start as the sinusoids, or ``sinusoidal`` (Vaswani et al.
            2017, section 3.5).
        max_positions: number of learned positions, which limits the length of captions.
        dropout: dropout probability of the embeddings and of what each sublayer adds to x.
        word_dropout: probability that an input word is replaced by ``<unk>`` in training, so that
            the model relies on the image rather than on the previous words.
        grid_dropout: dropout probability of the grid's elements, one mask per image and step.
        tie_embeddings: use the embedding matrix as the output matrix, too.
        normalize_grid: standardise the channels of each location. This is a LayerNorm without
            parameters, which the projections to keys and values would absorb.
        attention_layers: whose cross-attention the attention weights are: ``last``, or ``all``, the
            mean over the layers.
    """

    static = True

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        layers: int = 3,
        heads: int = 8,
        hidden_dim: int = 512,
        feedforward_dim: int = 1024,
        activation: Literal["gelu", "swiglu"] = "gelu",
        embed_dim: int | None = None,
        positions: Literal["learned", "sinusoidal"] = "learned",
        max_positions: int = 64,
        dropout: float = 0.3,
        word_dropout: float = 0.0,
        grid_dropout: float = 0.0,
        tie_embeddings: bool = True,
        normalize_grid: bool = True,
        attention_layers: Literal["last", "all"] = "last",
    ) -> None:
        super().__init__()
        embed_dim = hidden_dim if embed_dim is None else embed_dim
        check_sizes(
            layers=layers,
            heads=heads,
            hidden_dim=hidden_dim,
            feedforward_dim=feedforward_dim,
            embed_dim=embed_dim,
            max_positions=max_positions,
        )
        check_shares(dropout=dropout, word_dropout=word_dropout, grid_dropout=grid_dropout)
        if hidden_dim % heads:
            raise CaptioningError(f"model.heads={heads} must divide model.hidden_dim={hidden_dim}.")
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.embed_dim = embed_dim
        self.word_dropout = word_dropout
        self.normalize_grid = normalize_grid
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        same = embed_dim == hidden_dim
        self.input_words = None if same else nn.Linear(embed_dim, hidden_dim, bias=False)
        self.output_hidden = None if same else nn.Linear(hidden_dim, embed_dim, bias=False)
        self.output_words = nn.Linear(embed_dim, vocabulary_size)
        if tie_embeddings:
            self.output_words.weight = self.embedding.weight
        self.positions = (
            nn.Parameter(sinusoids(torch.arange(max_positions), hidden_dim))
            if positions == "learned"
            else None
        )
        self.layers = nn.ModuleList(
            TransformerLayer(
                hidden_dim,
                channels,
                heads=heads,
                feedforward_dim=feedforward_dim,
                activation=activation,
                dropout=dropout,
                need_weights=attention_layers == "all" or number == layers - 1,
            )
            for number in range(layers)
        )
        with torch.no_grad():  # so that x is as large whatever the number of layers (GPT-2)
            for _, _, layer in self.each_layer():
                for output in (layer.self_output, layer.cross_output, layer.feedforward.output):
                    output.weight *= (3 * layers) ** -0.5
        self.output_norm = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.grid_dropout = Dropout(grid_dropout)

    def each_layer(self) -> Iterator[tuple[str, str, "TransformerLayer"]]:
        """The layers, the first one first, and the names of their keys and of their values."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, TransformerLayer)
            yield f"keys{number}", f"values{number}", layer

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """The keys and values of each layer's cross-attention: B x heads x P x H / heads."""
        grid = standardize(grid)[0] if self.normalize_grid else grid.to(product_dtype(grid))
        grid = self.grid_dropout(grid)
        memory: Memory = {}
        for keys, values, layer in self.each_layer():
            memory[keys], memory[values] = layer.keys_values_of_grid(grid)
        return memory

    def start(self, memory: Memory, captions: int) -> State:
        """The keys and values of each layer's self-attention, of no words yet.

        They are B x K x heads x t x H / heads after t words.
        """
        images, heads, _, size = memory["keys0"].shape
        none = memory["keys0"].new_empty(images, captions, heads, 0, size)
        return {name: none for keys, values, _ in self.each_layer() for name in (keys, values)}

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        images, captions = tokens.shape
        read = state["keys0"].shape[3]
        x = self.embed(tokens.flatten(), self.position_codes(read, 1))
        x, state, attention = self.run(x, Words(images, captions, 1), memory, state)
        logits = self.output_logits(x).view(images, captions, -1)
        return Step(logits, state, attention.squeeze(2))

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        memory = self.prepare(grid)
        images, captions, length = tokens.shape[0], tokens.shape[1], tokens.shape[2] - 1
        packed = pack(tokens).to(grid.device)
        words = Words(images, captions, length, packed.positions)
        codes = self.position_codes(0, length)
        codes = nn.functional.embedding(packed.positions % length, codes)
        x = self.embed(self.drop_words(packed.inputs), codes)
        x, _, attention = self.run(x, words, memory)
        real = words.pad((packed.targets != PAD)[:, None].to(attention.dtype))  # 1 or 0
        return TeacherForced(
            self.output_logits(x),
            packed.targets,
            packed.positions,
            packed.lengths,
            length,
            (attention * real).sum(2),
            words.unpad(attention),
        )

    def run(
        self,
        x: Float[Tensor, "rows hidden"],
        words: "Words",
        memory: Memory,
        state: State | None = None,
    ) -> tuple[
        Float[Tensor, "rows hidden"], State, Float[Tensor, "images captions length locations"]
    ]:
        """Apply the layers to words.

        Args:
            x: the embeddings of the words.
            words: which words these are.
            memory: the memory of the images.
            state: the keys and values of previous words; None before the first word.

        Returns:
            The output of the last layer, the state after these words, and their attention weights.
        """
        new: State = {}
        attention: list[Tensor] = []
        for keys, values, layer in self.each_layer():
            past = None if state is None else (state[keys], state[values])
            x, new[keys], new[values] = layer.attend_to_words(x, words, past)
            x, weights = layer.attend_to_grid(x, words, memory[keys], memory[values])
            if weights is not None:
                attention.append(weights)
            x = layer.transform(x)
        return x, new, attention[0] if len(attention) == 1 else torch.stack(attention).mean(0)

    def embed(
        self, tokens: Int[Tensor, " rows"], positions: Float[Tensor, "_ hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        """The words' embeddings, multiplied by the root of their size, plus their positions' codes.

        See Vaswani et al. 2017, sections 3.4 and 3.5.
        """
        embedded = self.embed_dim**0.5 * self.embedding(tokens)
        if self.input_words is not None:
            embedded = self.input_words(embedded)
        x: Tensor = self.dropout(embedded + positions)
        return x

    def position_codes(self, first: int, count: int) -> Float[Tensor, "count hidden"]:
        """The codes of the positions ``first``, ``first + 1``, ...

        Raises:
            CaptioningError: the model has learned fewer positions.
        """
        if self.positions is None:
            places = torch.arange(first, first + count, device=self.embedding.weight.device)
            return sinusoids(places, self.hidden_dim).to(self.embedding.weight.dtype)
        if first + count > len(self.positions):
            raise CaptioningError(
                f"model.max_positions={len(self.positions)}: a caption has {first + count} or more "
                "words; choose a larger number, or model.positions=sinusoidal."
            )
        return self.positions[first : first + count]

    def output_logits(self, x: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows words"]:
        """The logits of the next word."""
        x = self.output_norm(x)
        if self.output_hidden is not None:
            x = self.output_hidden(x)
        logits: Tensor = self.output_words(x)
        return logits

    def drop_words(self, tokens: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """In training, replace a share of the words by ``<unk>``."""
        return drop_words(tokens, self.word_dropout) if self.training else tokens


class Words(NamedTuple):
    """The words that are computed, of all captions of a batch.

    Linear layers compute one row for each word. Attention needs the words of a caption in their
    order, B x K x T, with zeros where a caption has ended.

    Attributes:
        images: number of images (B).
        captions: number of captions of each image (K).
        length: number of words of each caption, with padding (T).
        positions: the index of each row in the flattened B x K x T; None if all are there in order.
    """

    images: int
    captions: int
    length: int
    positions: Int[Tensor, " rows"] | None = None

    def pad(self, rows: Float[Tensor, "rows size"]) -> Float[Tensor, "images captions length size"]:
        """Arrange rows as images x captions x words."""
        if self.positions is not None:
            padded = rows.new_zeros(self.images * self.captions * self.length, rows.shape[1])
            rows = padded.index_copy(0, self.positions, rows)
        return rows.view(self.images, self.captions, self.length, -1)

    def unpad(
        self, padded: Float[Tensor, "images captions length size"]
    ) -> Float[Tensor, "rows size"]:
        """The rows again."""
        flat = padded.flatten(0, 2)
        return flat if self.positions is None else flat.index_select(0, self.positions)


class TransformerLayer(nn.Module):
    """A layer of :class:`Transformer`: self-attention, cross-attention, feed-forward network.

    Args:
        hidden_dim: size of the residual stream (H).
        channels: channels of the grid (C).
        heads: number of heads of both attentions.
        feedforward_dim: as for :class:`Transformer`, like the following arguments.
        activation: ``gelu`` or ``swiglu``.
        dropout: dropout probability of what each sublayer adds.
        need_weights: whether the weights of the cross-attention are returned.
    """

    static = True

    def __init__(
        self,
        hidden_dim: int,
        channels: int,
        *,
        heads: int,
        feedforward_dim: int,
        activation: Literal["gelu", "swiglu"],
        dropout: float,
        need_weights: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.need_weights = need_weights
        self.self_norm = nn.LayerNorm(hidden_dim)
        self.self_input = nn.Linear(hidden_dim, 3 * hidden_dim)  # queries, keys, values
        self.self_output = nn.Linear(hidden_dim, hidden_dim)
        self.cross_norm = nn.LayerNorm(hidden_dim)
        self.cross_query = nn.Linear(hidden_dim, hidden_dim)
        self.cross_keys_values = nn.Linear(channels, 2 * hidden_dim)
        self.cross_output = nn.Linear(hidden_dim, hidden_dim)
        self.feedforward_norm = nn.LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, activation)
        self.dropout = Dropout(dropout)

    def keys_values_of_grid(
        self, grid: Float[Tensor, "images locations channels"]
    ) -> tuple[
        Float[Tensor, "images heads locations size"], Float[Tensor, "images heads locations size"]
    ]:
        """The keys and values of the locations, laid out for the products of every word."""
        keys, values = self.cross_keys_values(grid).chunk(2, -1)
        return split_heads(keys, self.heads).contiguous(), split_heads(
            values, self.heads
        ).contiguous()

    def attend_to_words(
        self,
        x: Float[Tensor, "rows hidden"],
        words: Words,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "rows hidden"], Tensor, Tensor]:
        """Causal self-attention.

        Args:
            x: the input of the layer.
            words: the words; just one of each caption if there is a ``past``.
            past: the keys and values of the words before them.

        Returns:
            The sum of x and the attention's output, and the keys and values of all words so far,
            B x K x heads x words x H / heads.
        """
        padded = words.pad(self.self_input(self.self_norm(x)))
        query, keys, values = (split_heads(each, self.heads) for each in padded.chunk(3, -1))
        if past is not None:
            assert words.length == 1
            keys, values = torch.cat([past[0], keys], 3), torch.cat([past[1], values], 3)
        context = dot_product_attention(
            query.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), causal=past is None
        )
        rows = words.unpad(join_heads(context).view(*padded.shape[:3], -1))
        return x + self.dropout(self.self_output(rows)), keys, values

    def attend_to_grid(
        self,
        x: Float[Tensor, "rows hidden"],
        words: Words,
        keys: Float[Tensor, "images heads locations size"],
        values: Float[Tensor, "images heads locations size"],
    ) -> tuple[
        Float[Tensor, "rows hidden"], Float[Tensor, "images captions length locations"] | None
    ]:
        """Cross-attention; the captions of an image share its keys and values.

        Returns:
            The sum of x and the attention's output, and, if they are needed, the weights, whose
            mean is taken over the heads.
        """
        padded = words.pad(self.cross_query(self.cross_norm(x)))
        query = split_heads(padded.flatten(1, 2), self.heads)  # B x heads x K T x H / heads
        attention = None
        if self.need_weights:
            weights, context = dot_product_attention_weights(query, keys, values)
            attention = weights.mean(1).view(*padded.shape[:3], -1)
        else:
            context = dot_product_attention(query, keys, values)
        rows = words.unpad(join_heads(context).view(*padded.shape[:3], -1))
        return x + self.dropout(self.cross_output(rows)), attention

    def transform(self, x: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
        """The sum of x and the output of the feed-forward network."""
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class FeedForward(nn.Module):
    """W_2 GELU(W_1 x), or W_2 (SiLU(W_1 x) * W_3 x) with 2/3 of the units (Shazeer 2020).

    Args:
        hidden_dim: size of the input and of the output.
        feedforward_dim: number of units with ``gelu``.
        activation: ``gelu`` or ``swiglu``.
    """

    static = True

    def __init__(
        self, hidden_dim: int, feedforward_dim: int, activation: Literal["gelu", "swiglu"]
    ) -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        units = max(1, 2 * feedforward_dim // 3) if self.gated else feedforward_dim
        self.input = nn.Linear(hidden_dim, 2 * units if self.gated else units)  # W_1, W_3
        self.output = nn.Linear(units, hidden_dim)

    def forward(self, x: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
        units = self.input(x)
        if self.gated:
            units, gate = units.chunk(2, -1)
            units = nn.functional.silu(units) * gate
        else:
            units = nn.functional.gelu(units)
        output: Tensor = self.output(units)
        return output


def split_heads(
    x: Float[Tensor, "*batch words hidden"], heads: int
) -> Float[Tensor, "*batch heads words size"]:
    """Divide the last dimension among heads."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)  # type: ignore[no-untyped-call]


def join_heads(x: Float[Tensor, "*batch heads words size"]) -> Float[Tensor, "*batch words hidden"]:
    """Put the heads' outputs side by side."""
    return x.transpose(-3, -2).flatten(-2)


def sinusoids(positions: Int[Tensor, " positions"], size: int) -> Float[Tensor, "positions size"]:
    """The codes of positions by sines and cosines of many wavelengths.

    The wavelengths are those of Vaswani et al. 2017, section 3.5; sines are in the first half.
    """
    half = -(-size // 2)
    rates = 10_000.0 ** (-torch.arange(half, device=positions.device) / half)
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[:, :size]

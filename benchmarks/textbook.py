"""Show, Attend and Tell as tutorials write it: one row per caption, one line per equation.

This is the reference of the benchmarks: for speed and, in double precision, for numerical accuracy.
With the same weights it computes what
:class:`captioning.models.decoders.attn_lstm.AttentionLSTM` computes, in the way of the best-known
tutorials: every caption has its own copy of the grid, the whole grid is projected again at every
word, and the logits are computed word by word. As in the tutorials, captions are sorted by length,
and those that have ended leave the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from captioning.models.attention.additive import AdditiveAttention
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.support.special_tokens import END, PAD, START


class Textbook(nn.Module):
    """The paper's decoder with soft attention, one gate per channel, and deep output.

    Args:
        decoder: the decoder whose weights are copied; all its settings except the sizes must have
            their defaults.
    """

    def __init__(self, decoder: AttentionLSTM) -> None:
        super().__init__()
        assert decoder.gate is not None
        assert decoder.output_context is not None
        hidden, attention = decoder.hidden_dim, decoder.attention.query.out_features
        channels, gate = decoder.context_gates.in_features, decoder.gate.out_features
        words, embed = decoder.embedding.weight.shape
        self.normalize = nn.LayerNorm(channels, elementwise_affine=False)
        self.embedding = nn.Embedding(words, embed)
        self.initial_hidden = nn.Linear(channels, hidden)
        self.initial_cell = nn.Linear(channels, hidden)
        self.attend_grid = nn.Linear(channels, attention)
        self.attend_hidden = nn.Linear(hidden, attention)
        self.attend = nn.Linear(attention, 1, bias=False)
        self.gate = nn.Linear(hidden, gate)
        self.lstm = nn.LSTMCell(embed + channels, hidden)
        self.output_hidden = nn.Linear(hidden, embed)
        self.output_context = nn.Linear(channels, embed, bias=False)
        self.output_words = nn.Linear(embed, words)
        self.dropout = nn.Dropout(decoder.dropout.p)
        with torch.no_grad():
            self.lstm.bias_hh.zero_()  # the decoder's gates have one bias
            for mine, theirs in self.pairs(decoder, lambda parameter: parameter.data):
                mine.copy_(theirs)

    def pairs(
        self, decoder: AttentionLSTM, read: Callable[[nn.Parameter], Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Pairs of ``read(parameter)``: for each parameter here, and for the decoder's equivalent.

        The parts of a parameter that the decoder keeps apart are pairs of their own.
        """
        assert isinstance(decoder.attention, AdditiveAttention)
        layers = [
            (self.initial_hidden, decoder.initial_hidden),
            (self.initial_cell, decoder.initial_cell),
            (self.attend_grid, decoder.attention.key),
            (self.attend_hidden, decoder.attention.query),
            (self.gate, decoder.gate),
            (self.output_hidden, decoder.output_hidden),
            (self.output_words, decoder.output_words),
        ]
        words, context = read(self.lstm.weight_ih).split(
            [decoder.embed_dim, decoder.context_gates.in_features], 1
        )
        return [
            *((read(mine.weight), read(theirs.weight)) for mine, theirs in layers),
            *((read(mine.bias), read(theirs.bias)) for mine, theirs in layers),
            (read(self.embedding.weight), read(decoder.embedding.weight)),
            (read(self.output_context.weight), read(decoder.output_context.weight)),
            (read(self.attend.weight)[0], read(decoder.attention.score)),
            (words, read(decoder.input_gates.weight)),
            (context, read(decoder.context_gates.weight)),
            (read(self.lstm.bias_ih), read(decoder.input_gates.bias)),
            (read(self.lstm.weight_hh), read(decoder.hidden_gates.weight)),
        ]

    def gradients(self, decoder: AttentionLSTM) -> list[tuple[Tensor, Tensor]]:
        """Pairs of gradients, of the parameters here and of the decoder's, after ``backward()``."""

        def gradient(parameter: nn.Parameter) -> Tensor:
            assert parameter.grad is not None
            return parameter.grad

        return self.pairs(decoder, gradient)

    def start(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The state before the first word, from standardised grids (captions x locations x C)."""
        mean = grid.mean(1)
        return self.initial_hidden(mean).tanh(), self.initial_cell(mean)

    def word(
        self, grid: Tensor, tokens: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read one token of each caption; returns the logits of the next one and the new state."""
        embedded = self.dropout(self.embedding(tokens))
        query = self.attend_hidden(hidden)[:, None]
        scores = self.attend((self.attend_grid(grid) + query).tanh()).squeeze(2)
        alpha = scores.softmax(1)
        context = self.gate(hidden).sigmoid() * (alpha[..., None] * grid).sum(1)
        hidden, cell = self.lstm(torch.cat([embedded, context], 1), (hidden, cell))
        deep = embedded + self.output_hidden(hidden) + self.output_context(context)
        return self.output_words(self.dropout(deep)), hidden, cell

    def forward(self, grid: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The logits and the true next words of all real tokens, word after word.

        Args:
            grid: captions x locations x channels.
            tokens: captions x length, padded, longest caption first.
        """
        grid = self.normalize(grid)
        hidden, cell = self.start(grid)
        logits, targets = [], []
        for t in range(tokens.shape[1] - 1):
            left = int((tokens[:, t + 1] != PAD).sum())
            scores, hidden, cell = self.word(
                grid[:left], tokens[:left, t], hidden[:left], cell[:left]
            )
            logits.append(scores)
            targets.append(tokens[:left, t + 1])
        return torch.cat(logits), torch.cat(targets)

    @torch.inference_mode()
    def beam(self, grid: Tensor, width: int, max_length: int) -> list[int]:
        """The most probable caption of one image (locations x channels) by beam search."""
        grid = self.normalize(grid)[None].expand(width, -1, -1)
        hidden, cell = self.start(grid)
        total = torch.tensor([0.0] + [-torch.inf] * (width - 1))
        beams: list[list[int]] = [[START]] * width
        done: list[tuple[float, list[int]]] = []
        for _ in range(max_length):
            last = torch.tensor([beam[-1] for beam in beams])
            scores, hidden, cell = self.word(grid[: len(beams)], last, hidden, cell)
            scores = total[:, None] + scores.log_softmax(1)
            total, chosen = scores.flatten().topk(len(beams))
            parent, word = chosen // scores.shape[1], chosen % scores.shape[1]
            beams = [beams[p] + [w] for p, w in zip(parent.tolist(), word.tolist(), strict=True)]
            ended = [beam[-1] == END for beam in beams]
            done += [(float(s), b) for s, b, e in zip(total, beams, ended, strict=True) if e]
            left = torch.tensor([k for k, e in enumerate(ended) if not e], dtype=torch.long)
            beams = [beams[k] for k in left.tolist()]
            total, hidden, cell = total[left], hidden[parent][left], cell[parent][left]
            if not beams:
                break
        done += [(float(s), b) for s, b in zip(total, beams, strict=True)]
        return max(done)[1][1:]


def rows(grid: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Turn images x captions into one row per caption, longest first, each with its own grid."""
    captions = tokens.shape[1]
    flat = tokens.flatten(0, 1)
    order = (flat != PAD).sum(1).argsort(descending=True, stable=True)
    return grid.repeat_interleave(captions, 0)[order], flat[order]

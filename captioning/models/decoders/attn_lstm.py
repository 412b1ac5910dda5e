"""Show, Attend and Tell (Xu et al. 2015) with soft attention."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import (
    AdditiveKeys,
    Dropout,
    RecurrenceWeights,
    Rows,
    attention_recurrence,
    lstm_cell,
)
from captioning.models.attention import ATTENTIONS
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Attention, Memory
from captioning.models.decoders.base import State
from captioning.models.decoders.lstm import LSTM
from captioning.models.decoders.recurrent import check_shares, check_sizes
from captioning.models.unchanged import is_plain, keeps_methods, methods_of
from captioning.support.build import build


class AttentionLSTM(LSTM):
    """An LSTM that reads a weighted mean of the image's locations at every word.

    Args:
        vocabulary_size: number of tokens (V).
        channels: channels of the grid (C).
        attention: ``additive`` (the paper's), ``multiplicative``, ``scaled_dot``, the dotted path
            of an :class:`~captioning.models.attention.base.Attention`, or a mapping of ``_target_``
            (any of these) and its further arguments.
        attention_dim: dimension to which attention projects queries and locations (A).
        gate: the gate beta_t = sigmoid(f_beta(h_{t-1})) by which the context is multiplied:
            ``scalar``, one number per word (section 4.2.1 of the paper); ``channel``, one number
            per channel; or ``none``, no gate.
        grid_dropout: dropout probability of the grid's elements, for the attention only; one mask
            per image and training step.
        word_query: add a projection of the previous word's embedding to the query. The paper's
            query is h_{t-1} alone, which has not read word t-1 when it attends for word t.
        deep_output: add the context to the output layer (L_z z); without it, words are predicted
            from h_t and the previous word alone.
        base: the other arguments of
            :class:`~captioning.models.decoders.recurrent.RecurrentDecoder`.
    """

    static = True

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        attention: str | Mapping[str, Any] = "additive",
        attention_dim: int = 512,
        gate: Literal["scalar", "channel", "none"] = "channel",
        grid_dropout: float = 0.0,
        word_query: bool = False,
        deep_output: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(vocabulary_size, channels, **base)
        check_sizes(attention_dim=attention_dim)
        check_shares(grid_dropout=grid_dropout)
        self.attention = build_attention(attention, channels, self.hidden_dim, attention_dim)
        gate_dim = {"scalar": 1, "channel": channels, "none": 0}[gate]
        self.gate = nn.Linear(self.hidden_dim, gate_dim) if gate_dim else None
        self.context_gates = nn.Linear(channels, 4 * self.hidden_dim, bias=False)
        self.word_query = nn.Linear(self.embed_dim, attention_dim) if word_query else None
        self.output_context = (
            nn.Linear(channels, self.embed_dim, bias=False) if deep_output else None
        )
        self.grid_dropout = Dropout(grid_dropout)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        memory = super().prepare(grid)
        return memory | self.attention.prepare(self.grid_dropout(memory["grid"]))

    def word_inputs(self, embedded: Float[Tensor, "tokens embed"]) -> dict[str, Tensor]:
        """The words' contributions to the gates and, with ``word_query``, to the query."""
        inputs = super().word_inputs(embedded)
        return inputs if self.word_query is None else inputs | {"query": self.word_query(embedded)}

    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        """One word of Xu et al. 2015, without its output.

        From h_{t-1}: the weights alpha_t and the context z_t (eq. 4, 5 and section 4.2), which is
        multiplied by the gate beta_t (section 4.2.1); then the LSTM's c_t and h_t (eq. 1 to 3),
        whose four gates are sums of the parts of word t-1 (``inputs["gates"]``), h_{t-1} and z_t.
        """
        hidden = state["hidden"]
        query = self.attention.query(hidden)
        if "query" in inputs:
            query = query + inputs["query"]
        looked = self.attend(query, state, memory, rows)
        context = looked["context"]
        if self.gate is not None:
            context = self.gate(hidden).sigmoid() * context
        hidden, cell = lstm_cell(
            state["cell"], inputs["gates"], self.hidden_gates(hidden), self.context_gates(context)
        )
        return looked | {"hidden": hidden, "cell": cell, "context": context}

    def attend(
        self, query: Float[Tensor, "rows units"], state: State, memory: Memory, rows: Rows
    ) -> State:
        """The weights alpha_t and the context z_t, before the gate.

        An attention that remembers where it has looked overrides this and :meth:`init_state`: what
        is returned here is part of the state, by which it is given again at the next word. The
        names ``attention``, ``context`` and ``location`` are of results alone.
        """
        del state
        weights, context = self.attention(query, memory, rows)
        return {"attention": weights, "context": context}

    def recur(
        self,
        inputs: Mapping[str, Float[Tensor, "tokens _"]],
        state: State,
        keep: Float[Tensor, "rows hidden"] | None,
        memory: Memory,
        rows: Rows,
        counts: Sequence[int],
    ) -> State:
        """Process all words: the loop of the base class, or the same as one faster op.

        The op is used if it can compute these words, and if nothing of the model was changed.
        """
        weights = self._weights_of_step()
        if weights is not None and type(memory["keys"]) is AdditiveKeys:
            words = attention_recurrence(
                inputs["gates"], inputs.get("query"), state["hidden"], state["cell"], keep, counts,
                memory["keys"], memory["grid"], rows, weights,
            )  # fmt: skip
            if words is not None:
                return dict(zip(("hidden", "context", "attention"), words, strict=True))
        return super().recur(inputs, state, keep, memory, rows, counts)

    def _weights_of_step(self) -> RecurrenceWeights | None:
        """The parameters of :meth:`recurrent_step` for the op; None if the step was changed.

        A subclass, a hook or another layer (LoRA, say) may have changed it.
        """
        attention, gate = self.attention, self.gate
        if not (keeps_methods(self, STEP) and is_plain(attention, AdditiveAttention)):
            return None
        assert isinstance(attention, AdditiveAttention)
        layers = [attention.query, self.hidden_gates, self.context_gates]
        layers += [] if gate is None else [gate]
        if not all(is_plain(each, nn.Linear) for each in layers):
            return None
        if any(each.bias is not None for each in (self.hidden_gates, self.context_gates)):
            return None  # the op does not add them
        return RecurrenceWeights(
            attention.query.weight,
            attention.query.bias,
            attention.score,
            None if gate is None else gate.weight,
            None if gate is None else gate.bias,
            self.hidden_gates.weight,
            self.context_gates.weight,
        )

    def output_logits(
        self,
        embedded: Float[Tensor, "tokens embed"],
        hidden: Float[Tensor, "tokens hidden"],
        context: Float[Tensor, "tokens channels"] | None,
    ) -> Float[Tensor, "tokens words"]:
        """The deep output L_o (E y + L_h h + L_z z) (Xu et al. 2015, eq. 7)."""
        if self.output_context is not None:
            embedded = embedded + self.output_context(context)
        return super().output_logits(embedded, hidden, context)


STEP = methods_of(AttentionLSTM, "recurrent_step", "attend", "read_out")
"""What :meth:`AttentionLSTM.recur` computes by one op."""


def build_attention(
    spec: str | Mapping[str, Any], channels: int, query_dim: int, attention_dim: int
) -> Attention:
    """Build the attention of a configuration.

    Raises:
        CaptioningError: there is no such attention, or it does not take one of the arguments.
    """
    return build(
        spec,
        Attention,
        "model.attention",
        names=ATTENTIONS,
        channels=channels,
        query_dim=query_dim,
        attention_dim=attention_dim,
    )

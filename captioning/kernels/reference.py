"""Every op in a few lines of plain PyTorch: the definitions against which kernels are tested.

Autograd computes the gradients, so that these functions support any floating type and any device,
can be differentiated twice, and work under ``torch.func``. ``backend=torch`` uses only these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from captioning.kernels.rows import Rows
from captioning.support.special_tokens import PAD


def at_least_single(x: Tensor) -> Tensor:
    """Cast a tensor to single precision, unless it has double precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def additive_attention(
    query: Float[Tensor, "rows units"],
    keys: Float[Tensor, "images locations units"],
    weight: Float[Tensor, " units"],
    grid: Float[Tensor, "images locations channels"],
    rows: Rows,
) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
    """Additive attention (Xu et al. 2015, eq. 4, 5 and 13).

    alpha = softmax(v . tanh(W_a a_i + W_h h)) and z = sum_i alpha_i a_i.
    """
    with torch.autocast(query.device.type, enabled=False):
        by_image = rows.scatter(at_least_single(query))  # B x K x A
        hidden = (at_least_single(keys)[:, None] + by_image[:, :, None]).tanh()  # B x K x P x A
        alpha = (hidden @ at_least_single(weight)).softmax(-1)  # B x K x P
        context = alpha @ at_least_single(grid)  # B x K x C
    return rows.gather(alpha), rows.gather(context)


def lstm_cell(
    cell: Float[Tensor, "rows units"], *addends: Float[Tensor, "rows gates"]
) -> tuple[Float[Tensor, "rows units"], Float[Tensor, "rows units"]]:
    """An LSTM cell, c_t = f c_{t-1} + i g and h_t = o tanh(c_t) (Xu et al. 2015, eq. 1 to 3).

    The sum of the addends is the gates i, f, g, o before their activations.
    """
    gates = sum(addends[1:], start=addends[0])
    i, f, g, o = at_least_single(gates).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


class RecurrenceWeights(NamedTuple):
    """The parameters of an LSTM with additive attention that are used at every word.

    Attributes:
        query: W_h of the attention.
        query_bias: the bias of the query.
        score: v of the attention.
        gate: the weight of the gate f_beta, which has one unit or one for each channel; None
            without a gate.
        gate_bias: the bias of the gate.
        hidden: the weight of h_{t-1} in the gates of the LSTM.
        context: the weight of z_t in the gates of the LSTM.
    """

    query: Float[Tensor, "attention units"]
    query_bias: Float[Tensor, " attention"]
    score: Float[Tensor, " attention"]
    gate: Float[Tensor, "gate units"] | None
    gate_bias: Float[Tensor, " gate"] | None
    hidden: Float[Tensor, "gates units"]
    context: Float[Tensor, "gates channels"]


def attention_recurrence(
    gates: Float[Tensor, "tokens gates"],
    query: Float[Tensor, "tokens attention"] | None,
    hidden: Float[Tensor, "rows units"],
    cell: Float[Tensor, "rows units"],
    keep: Float[Tensor, "rows units"] | None,
    counts: Sequence[int],
    keys: Float[Tensor, "images locations attention"],
    grid: Float[Tensor, "images locations channels"],
    rows: Rows,
    weights: RecurrenceWeights,
) -> tuple[
    Float[Tensor, "tokens units"],
    Float[Tensor, "tokens channels"],
    Float[Tensor, "tokens locations"],
]:
    """An LSTM with additive attention over all words (Xu et al. 2015, eq. 1 to 5 and 4.2.1)."""
    linear, start = nn.functional.linear, 0
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for count in counts:
        word = slice(start, start := start + count)
        before = hidden[:count] if keep is None else hidden[:count] * keep[:count]
        asked = linear(before, weights.query, weights.query_bias)
        asked = asked if query is None else asked + query[word]
        alpha, context = additive_attention(asked, keys, weights.score, grid, rows.head(count))
        if weights.gate is not None:
            context = linear(before, weights.gate, weights.gate_bias).sigmoid() * context
        addends = gates[word], linear(before, weights.hidden), linear(context, weights.context)
        hidden, cell = lstm_cell(cell[:count], *addends)
        found.append((hidden, context, alpha))
    hiddens, contexts, alphas = (torch.cat(parts) for parts in zip(*found, strict=True))
    return hiddens, contexts, alphas


def standardize(
    grid: Float[Tensor, "images locations channels"], eps: float
) -> tuple[Float[Tensor, "images locations channels"], Float[Tensor, "images channels"]]:
    """LayerNorm over the channels without parameters, and the mean of the result over locations."""
    grid = nn.functional.layer_norm(at_least_single(grid), grid.shape[-1:], eps=eps)
    return grid, grid.mean(1)


def cross_entropy(
    logits: Float[Tensor, "tokens words"],
    targets: Int64[Tensor, " tokens"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean over the real tokens of -log softmax(logits)[target]; 0 if there are none."""
    total = nn.functional.cross_entropy(
        at_least_single(logits),
        targets,
        label_smoothing=label_smoothing,
        ignore_index=PAD,
        reduction="sum",
    )
    return total / (targets != PAD).sum().clamp(min=1)


def log_sum_exp(logits: Float[Tensor, "*rows words"]) -> Float[Tensor, "*rows"]:
    """The logarithm of the sum over all words of e^logit."""
    return at_least_single(logits).logsumexp(-1)


def topk(
    logits: Float[Tensor, "*rows words"], k: int
) -> tuple[Float[Tensor, "*rows k"], Int64[Tensor, "*rows k"]]:
    """The k highest logits, or all if there are fewer, and their words."""
    values, words = logits.topk(min(k, logits.shape[-1]))
    return at_least_single(values), words


def mask_tokens(
    logits: Float[Tensor, "*rows words"], banned: Int64[Tensor, "*rows many"]
) -> Float[Tensor, "*rows words"]:
    """Set the logits of the banned words to -inf, in place."""
    return logits.scatter_(-1, banned, -torch.inf)

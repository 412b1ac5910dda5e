"""Every op in a few lines of plain PyTorch: the definitions against which kernels are tested.

Autograd computes the gradients, so that these functions support any floating type and any device,
can be differentiated twice, and work under ``torch.func``. ``backend=torch`` uses only these.
"""

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
    """The mean over the real tokens of -log softmax(logits)[target]."""
    return nn.functional.cross_entropy(
        at_least_single(logits), targets, label_smoothing=label_smoothing, ignore_index=PAD
    )


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

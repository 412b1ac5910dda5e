"""What the ``test_right_*`` files share: small models, and the two kinds of comparison.

Under ``backend=torch`` gradients are compared with finite differences in double precision; a
compiled backend is compared, in single precision, with ``backend=torch``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captioning.decoding import Beam, Greedy
from captioning.kernels.backend import use_backend
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.lstm import LSTM

IMAGES, CAPTIONS, LOCATIONS, CHANNELS, HIDDEN, EMBED, WORDS = 2, 2, 3, 6, 6, 6, 9
"""Several sizes are equal, so that a matrix that is transposed by mistake still multiplies."""

KINDS = {"lstm": LSTM, "attn_lstm": AttentionLSTM}


def small_decoder(kind: str = "attn_lstm", **settings: Any) -> LSTM:
    """A decoder whose results do not depend on random numbers once it is made."""
    torch.manual_seed(0)
    if kind == "attn_lstm":
        settings = {"attention_dim": 6, "word_query": True} | settings
    defaults = {"hidden_dim": HIDDEN, "embed_dim": EMBED, "dropout": 0.0, "recurrent_dropout": 0.0}
    decoder = KINDS[kind](WORDS, CHANNELS, **(defaults | settings))
    with torch.no_grad():  # far enough from zero that a gradient that is missing is seen
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return decoder


def small_grid(seed: int = 0, images: int = IMAGES) -> Tensor:
    return torch.randn(images, LOCATIONS, CHANNELS, generator=torch.Generator().manual_seed(seed))


TOKENS = torch.tensor([[[1, 4, 5, 6, 2], [1, 7, 2, 0, 0]], [[1, 8, 4, 2, 0], [1, 3, 5, 2, 0]]])


def float_type(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def decoder_loss(decoder: Decoder, grid: Tensor, tokens: Tensor = TOKENS) -> Tensor:
    """A number that depends on the probability of every word and on the attention weights."""
    output = decoder(grid.to(float_type(decoder)), tokens)
    log_probs = output.token_log_probs()
    weights = torch.arange(1.0, log_probs.numel() + 1).view(log_probs.shape)
    loss = -(weights * log_probs).sum() / 10
    if output.coverage is not None:
        loss = loss + (output.coverage[..., 0] ** 2).sum()
    return loss


def step_log_probs(decoder: Decoder, grid: Tensor, tokens: Tensor = TOKENS) -> Tensor:
    """What ``forward(...).token_log_probs()`` is, computed word by word as decoding does."""
    memory = decoder.prepare(grid.to(float_type(decoder)))
    state = decoder.start(memory, tokens.shape[1])
    found = []
    for word in range(tokens.shape[2] - 1):
        step = decoder.step(tokens[:, :, word], state, memory)
        state, target = step.state, tokens[:, :, word + 1]
        chosen = step.logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
        found.append(chosen * (target != 0))
    return torch.stack(found, -1)


def captions_of(decoder: Decoder, grid: Tensor) -> list[list[list[int]]]:
    """What greedy decoding and beam search write."""
    grid = grid.to(float_type(decoder))
    found = [*Greedy(max_length=4)(decoder, grid), *Beam(beam_size=2, max_length=4)(decoder, grid)]
    return [[hypothesis.tokens for hypothesis in of_image] for of_image in found]


def gradients_of(
    loss: Callable[[], Tensor], leaves: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """A loss, and its gradient with respect to each leaf by an ordinary backward pass."""
    for leaf in leaves.values():
        leaf.grad = None
    value = loss()
    value.backward()
    return value.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def assert_right(backend: str, module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """The loss and its gradients with respect to all parameters that are trained are right.

    Args:
        backend: the implementation that is in use.
        module: its parameters are the leaves; it becomes one of double precision under ``torch``.
        loss: computes the loss from the module, in the module's precision.
    """
    if backend == "torch":
        module.double()
        _, found = gradients_of(loss, trained(module))
        assert_directional(trained(module), found, loss)
        return
    value, found = gradients_of(loss, trained(module))
    with use_backend("torch"):
        expected_value, expected = gradients_of(loss, trained(module))
    torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, expected)


def assert_same_gradients(
    found: dict[str, Tensor | None],
    expected: dict[str, Tensor | None],
    rtol: float = 2e-4,
    atol: float = 2e-5,
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        ours = found[name]
        assert (ours is None) == (gradient is None), name
        if gradient is not None:
            assert ours is not None
            torch.testing.assert_close(
                ours, gradient, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
            )


def assert_directional(
    leaves: dict[str, Tensor], gradients: dict[str, Tensor | None], loss: Callable[[], Tensor]
) -> None:
    """Gradients agree with the central difference along a random direction of all leaves."""
    generator, eps = torch.Generator().manual_seed(0), 1e-5
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    direction = {
        name: torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        for name, leaf in leaves.items()
    }
    values = []
    with torch.no_grad():
        for shift in (eps, -eps, 0):
            for name, leaf in leaves.items():
                leaf.copy_(before[name] + shift * direction[name])
            values.append(loss())
    slope = sum(
        (gradient * direction[name]).sum()
        for name, gradient in gradients.items()
        if gradient is not None
    )
    difference = (values[0] - values[1]) / (2 * eps)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-6)


def linear_layers(kind: str) -> Sequence[str]:
    """The names of the linear layers of a decoder."""
    decoder = small_decoder(kind)
    return [name for name, each in decoder.named_modules() if isinstance(each, nn.Linear)]

"""A check of objectives."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captioning.data.batch import Batch
from captioning.decoding.base import evaluation_mode
from captioning.kernels.backend import Backend, use_backend
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder, TeacherForced
from captioning.objectives import Objective
from captioning.support.special_tokens import PAD
from captioning.testing.comparison import (
    assert_close,
    check_gradients,
    devices,
    in_double,
)
from captioning.testing.decoder import made_up_captions

CHANNELS, LOCATIONS, WORDS = 6, 5, 11


def check_objective(
    objective: Objective, decoder: Decoder | None = None, *, channels: int = CHANNELS
) -> None:
    """Check that an objective gives a loss with which a decoder can be trained.

    Args:
        objective: the objective, on which ``setup`` has been called if it needs references; it is
            not changed. Its loss must be a differentiable function of the parameters. An objective
            that samples captions does not pass, because its gradient estimator differs from finite
            differences.
        decoder: the decoder of the check; None uses a small attention LSTM.
        channels: number of channels of the decoder's grid.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = copy.deepcopy(decoder) if decoder is not None else _small_decoder()
        objective = copy.deepcopy(objective)
        generator = torch.Generator().manual_seed(0)
        tokens = made_up_captions(decoder.vocabulary_size, generator)
        grid = torch.randn(len(tokens), LOCATIONS, channels, generator=generator)
        batch = Batch(grid, tokens, [f"image {number}" for number in range(len(tokens))])
        with evaluation_mode(decoder, objective):
            _check_parts(objective, decoder, batch)
            _check_padding(objective, decoder, batch)
            _check_backends(objective, decoder, batch)
            _check_gradients(objective, decoder, batch)
            _check_state_dict(objective, decoder, batch)


def _small_decoder() -> Decoder:
    return AttentionLSTM(WORDS, CHANNELS, hidden_dim=5, embed_dim=4, attention_dim=3)


def _losses(objective: Objective, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
    """Call the objective; callers pass a copy if a running baseline may change."""
    parts: dict[str, Tensor] = objective(decoder, batch)
    return parts


def _name(objective: Objective) -> str:
    return type(objective).__name__


def _check_parts(objective: Objective, decoder: Decoder, batch: Batch) -> None:
    name, parts = _name(objective), _losses(copy.deepcopy(objective), decoder, batch)
    assert isinstance(parts, dict), f"{name} returns {type(parts).__name__}, not a dictionary."
    assert "loss" in parts, f'{name} returns {", ".join(parts) or "nothing"}, and no "loss".'
    for part, value in parts.items():
        assert isinstance(value, Tensor) and value.ndim == 0, (  # noqa: PT018
            f"{name}: {part} must be a tensor without dimensions; it is {value!r}."
        )
        assert value.isfinite(), f"{name}: {part} is {value.item()}."
    assert parts["loss"].requires_grad, f"{name}: the loss does not depend on any parameter."


def _check_padding(objective: Objective, decoder: Decoder, batch: Batch) -> None:
    """Check that additional padding and missing captions do not change the result."""
    plain = _losses(copy.deepcopy(objective), decoder, batch)
    padded = torch.nn.functional.pad(batch.tokens, (0, 2, 0, 1), value=PAD)
    more = _losses(copy.deepcopy(objective), decoder, batch._replace(tokens=padded))
    for part, value in plain.items():
        assert_close(more[part], value, f"{_name(objective)}: {part} with more padding and without")
    copied = copy.deepcopy(decoder)
    copied.register_forward_hook(_with_rows_of_padding)
    for part, value in _losses(copy.deepcopy(objective), copied, batch).items():
        assert_close(
            value,
            plain[part],
            f"{_name(objective)}: {part} with rows whose target is padding, as a decoder may "
            "return, and without",
        )


def _with_rows_of_padding(
    decoder: nn.Module, arguments: object, output: TeacherForced
) -> TeacherForced:
    """A forward hook that adds rows for captions that have ended, whose target is padding."""
    flat = output.positions.new_zeros(output.lengths.numel() * output.max_length)
    flat[output.positions] = 1
    ended = (flat == 0).nonzero().flatten()  # where no target stands
    if output.attention is not None:
        rows = output.attention[:1].expand(len(ended), -1)
        output = replace(output, attention=torch.cat([output.attention, rows]))
    if output.location is not None:
        output = replace(output, location=torch.cat([output.location, torch.full_like(ended, -1)]))
    return replace(
        output,
        logits=torch.cat([output.logits, output.logits[:1].expand(len(ended), -1)]),
        targets=torch.cat([output.targets, torch.full_like(ended, PAD)]),
        positions=torch.cat([output.positions, ended]),
    )


def _check_backends(objective: Objective, decoder: Decoder, batch: Batch) -> None:
    """Compare parts and gradients of each backend, on each device."""
    expected = _with_gradients(objective, decoder, batch, "torch")
    for device in devices():
        moved = batch._replace(images=batch.images.to(device))
        found = _with_gradients(
            copy.deepcopy(objective).to(device), copy.deepcopy(decoder).to(device), moved, "auto"
        )
        for what, ours in found.items():
            assert_close(
                ours,
                expected[what],
                f"{_name(objective)}: {what} by backend=auto on {device} and by backend=torch",
                1e-3,
            )


def _with_gradients(
    objective: Objective, decoder: Decoder, batch: Batch, backend: Backend
) -> dict[str, Tensor]:
    objective = copy.deepcopy(objective)
    named = _learned(objective, decoder)
    with use_backend(backend):
        parts = _losses(objective, decoder, batch)
        gradients = torch.autograd.grad(
            parts["loss"], [each for _, each in named], allow_unused=True
        )
    results = dict(parts)
    for (name, _), gradient in zip(named, gradients, strict=True):
        assert gradient is not None, (
            f"{_name(objective)}: the loss gives {name} no gradient, so it cannot be learned."
        )
        results[f"the gradient with respect to {name}"] = gradient
    return results


def _learned(objective: Any, decoder: Any) -> list[tuple[str, Tensor]]:
    """The trainable parameters of both modules, with their names."""
    return [
        (f"{owner}.{name}", each)
        for owner, module in (("objective", objective), ("decoder", decoder))
        for name, each in module.named_parameters()
        if each.requires_grad
    ]


def _check_gradients(objective: Objective, decoder: Decoder, batch: Batch) -> None:
    doubled, model = in_double(objective), in_double(decoder)
    batch = batch._replace(images=batch.images.double())
    buffers = copy.deepcopy(dict(doubled.named_buffers()))

    def loss() -> Tensor:
        for name, value in doubled.named_buffers():  # reset a running baseline
            value.copy_(buffers[name])
        parts: dict[str, Tensor] = doubled(model, batch)
        return parts["loss"]

    check_gradients(loss, _learned(doubled, model), _name(objective))


def _check_state_dict(objective: Objective, decoder: Decoder, batch: Batch) -> None:
    """Check that the state dict contains everything on which the loss depends."""
    other = copy.deepcopy(objective)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(objective.state_dict())
    assert_close(
        _losses(other, decoder, batch)["loss"],
        _losses(copy.deepcopy(objective), decoder, batch)["loss"],
        f"{_name(objective)}: the loss before and after saving and loading",
    )

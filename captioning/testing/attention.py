"""A check of attentions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captioning.decoding.base import evaluation_mode
from captioning.kernels.backend import use_backend
from captioning.kernels.ops import Rows
from captioning.models.attention.base import Attention, Memory
from captioning.testing.comparison import (
    assert_close,
    check_gradients,
    copied,
    devices,
    in_double,
)

IMAGES, CAPTIONS, LOCATIONS, CHANNELS, QUERY, UNITS = 3, 4, 4, 8, 6, 8
"""Sizes; the grid is of 2 x 2 locations."""


def check_attention(
    make: Callable[..., Attention], *, positional: bool = False, **arguments: Any
) -> None:
    """Check that an attention has the properties on which decoders rely.

    Args:
        make: the class, or a function that returns an attention; it is called with ``channels``,
            ``query_dim``, ``attention_dim`` and ``arguments``.
        positional: whether the weights may depend on where a location is in the grid. Otherwise,
            permuting the locations has to permute the weights, and to leave the context unchanged.
        arguments: further arguments, such as ``heads=2``.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = make(channels=CHANNELS, query_dim=QUERY, attention_dim=UNITS, **arguments)
        assert isinstance(attention, Attention), f"{attention!r} is not an Attention."
        name = type(attention).__name__
        # Some of the captions of each image, in any order: other captions have ended.
        rows = Rows(torch.tensor([6, 0, 3, 9, 11, 2, 7]), IMAGES, CAPTIONS)
        grid = torch.randn(IMAGES, LOCATIONS, CHANNELS)
        states = torch.randn(len(rows.index), QUERY)
        with evaluation_mode(attention):
            _check_weights(name, attention, grid, states, rows)
            if not positional:
                _check_locations(name, attention, grid, states, rows)
            _check_repetition(name, attention, grid, states, rows)
            _check_independence(name, attention, grid, states, rows)
            _check_backends(name, attention, grid, states, rows)
            _check_gradients(name, in_double(attention), grid.double(), states.double(), rows)
            _check_state_dict(name, attention, make, arguments, grid, states, rows)
            _check_single_locations(name, attention, grid, states, rows)


def _attend(
    attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    memory = attention.prepare(grid)
    found: tuple[Tensor, Tensor] = attention(attention.query(states), memory, rows)
    return found


def _check_weights(
    name: str, attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> None:
    weights, context = _attend(attention, grid, states, rows)
    count = len(rows.index)
    for what, tensor, size in (("weights", weights, LOCATIONS), ("context", context, CHANNELS)):
        assert tensor.shape == (count, size), (
            f"{name}: the {what} of {count} rows have shape {tuple(tensor.shape)}, "
            f"not {(count, size)}."
        )
    assert (weights >= 0).all(), f"{name}: an attention weight is {weights.min().item():.3g} < 0."
    assert_close(weights.sum(-1), torch.ones(count), f"{name}: the sums of the weights are not 1")
    other = _attend(attention, grid, states + 1, rows)[0]
    assert not torch.allclose(other, weights, atol=1e-6), (
        f"{name}: the weights do not depend on the query."
    )
    assert not torch.allclose(weights, torch.full_like(weights, 1 / LOCATIONS), atol=1e-6), (
        f"{name}: all locations have the same weight, whatever their contents."
    )
    # A grid whose locations are alike has one possible context, whatever the weights are.
    alike = grid[:, :1].expand(-1, LOCATIONS, -1).contiguous()
    first = _attend(attention, alike, states, rows)[1]
    second = _attend(attention, alike, states + 1, rows)[1]
    assert_close(
        first,
        second,
        f"{name}: where all locations are alike, the context depends on the query; it should be a "
        "mix of the locations with the weights",
    )


def _check_locations(
    name: str, attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> None:
    """Check that permuting the locations permutes the weights and leaves the context unchanged."""
    order = torch.tensor([3, 0, 1, 2])
    weights, context = _attend(attention, grid, states, rows)
    moved, same = _attend(attention, grid[:, order], states, rows)
    assert_close(
        moved,
        weights[:, order],
        f"{name}: the weights are not permuted with their locations (if they should depend on "
        "places in the grid, give positional=True)",
    )
    assert_close(same, context, f"{name}: the context depends on the order of the locations")


def _check_repetition(
    name: str, attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> None:
    """Check that the result depends on the arguments alone, and not on earlier calls."""
    memory, query = attention.prepare(grid), attention.query(states)
    first, second = (attention(query, memory, rows)[0] for _ in range(2))
    assert_close(
        second,
        first,
        f"{name}: the weights of a second call with the same arguments; what an attention "
        "remembers of a caption belongs into the state of the decoder, as in examples/coverage.py",
    )


def _check_independence(
    name: str, attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> None:
    """Check that a row's result does not depend on other rows, and that memories can be indexed."""
    together = _attend(attention, grid, states, rows)
    memory = attention.prepare(grid)
    for row, index in enumerate(rows.index.tolist()):
        image, caption = divmod(index, CAPTIONS)
        selected: Memory = {key: value[torch.tensor([image])] for key, value in memory.items()}
        alone = Rows(torch.tensor([caption]), 1, CAPTIONS)
        found = attention(attention.query(states[row : row + 1]), selected, alone)
        for what, ours, theirs in zip(("weights", "context"), found, together, strict=True):
            assert_close(
                ours[0],
                theirs[row],
                f"{name}: the {what} of caption {caption} of image {image} are not the same alone "
                "and in a batch",
            )


def _check_backends(
    name: str, attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> None:
    """Compare results and gradients of the backends ``torch`` and ``auto``, on each device."""
    with use_backend("torch"):
        expected = _with_gradients(attention, grid, states, rows)
    for device in devices():
        on_device = copied(attention).to(device)
        moved = rows._replace(index=rows.index.to(device))
        found = _with_gradients(on_device, grid.to(device), states.to(device), moved)
        for (what, ours), (_, theirs) in zip(found, expected, strict=True):
            assert_close(
                ours,
                theirs,
                f"{name}: {what} by backend=auto on {device} and by backend=torch",
                1e-3,
            )


def _with_gradients(
    attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> list[tuple[str, Tensor]]:
    """Results and gradients of two words that share one memory, each with its name."""
    grid, states = grid.clone().requires_grad_(), states.clone().requires_grad_()
    named = [("the grid", grid), ("the states", states), *_learned(attention)]
    memory = attention.prepare(grid)
    words = [attention(attention.query(factor * states), memory, rows) for factor in (1.0, -0.5)]
    loss = torch.stack([_weighted_sum(word) for word in words]).sum()
    gradients = torch.autograd.grad(loss, [tensor for _, tensor in named], allow_unused=True)
    results = [("the weights", words[0][0]), ("the context", words[0][1])]
    return results + [
        (f"the gradient with respect to {name}", torch.zeros(()) if grad is None else grad)
        for (name, _), grad in zip(named, gradients, strict=True)
    ]


def _weighted_sum(results: tuple[Tensor, Tensor]) -> Tensor:
    total: Tensor = torch.zeros((), dtype=results[0].dtype, device=results[0].device)
    for tensor in results:
        factors = torch.arange(1, tensor.numel() + 1, device=tensor.device).sin()
        total = total + (tensor * factors.to(tensor.dtype).view_as(tensor)).sum()
    return total


def _learned(attention: Attention) -> list[tuple[str, Tensor]]:
    return [(n, each) for n, each in attention.named_parameters() if each.requires_grad]


def _check_gradients(name: str, attention: Any, grid: Tensor, states: Tensor, rows: Rows) -> None:
    """Compare gradients with respect to grid, states and parameters with finite differences."""
    leaves = [("the grid", grid.requires_grad_()), ("the states", states.requires_grad_())]

    def loss() -> Tensor:
        return _weighted_sum(_attend(attention, grid, states, rows))

    check_gradients(loss, [*leaves, *_learned(attention)], name)


def _check_state_dict(
    name: str,
    attention: Attention,
    make: Callable[..., Attention],
    arguments: dict[str, Any],
    grid: Tensor,
    states: Tensor,
    rows: Rows,
) -> None:
    """Check that loading the state dict into a new attention reproduces the results."""
    other = make(channels=CHANNELS, query_dim=QUERY, attention_dim=UNITS, **arguments).eval()
    other.load_state_dict(attention.state_dict())
    for what, ours, theirs in zip(
        ("weights", "context"),
        _attend(other, grid, states, rows),
        _attend(attention, grid, states, rows),
        strict=True,
    ):
        assert_close(ours, theirs, f"{name}: the {what} before and after saving and loading")


def _check_single_locations(
    name: str, attention: Attention, grid: Tensor, states: Tensor, rows: Rows
) -> None:
    """Check that `context_at` is the context of a grid that has only the given location."""
    memory = attention.prepare(grid)
    for place in range(LOCATIONS):
        location = torch.full_like(rows.index, place)
        assert_close(
            attention.context_at(location, memory, rows),
            _attend(attention, grid[:, place : place + 1], states, rows)[1],
            f"{name}: `context_at` a location and the context of a grid of that location alone",
        )

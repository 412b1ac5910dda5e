"""A check of image encoders."""

import copy
import re

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from captioning.models.encoders.base import GridEncoder
from captioning.support.state_dicts import fingerprint


def check_encoder(encoder: GridEncoder) -> None:
    """Check that an encoder has the properties on which the feature store and models rely.

    The check compares the declared attributes with the encoder's output. It also checks the order
    of the locations, that the images of a batch do not influence each other, that the encoder stays
    in evaluation mode, which parameters get gradients, and that its state dict contains everything
    on which its output depends and gives its fingerprint.

    Use an encoder with a small ``image_size``, for speed, but with a grid of at least 4 x 4
    locations: on smaller grids, each location responds to the whole picture. Random weights are
    sufficient.

    Args:
        encoder: a newly constructed encoder, on any device; it is not changed.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    encoder = copy.deepcopy(encoder)
    pictures = _pictures(encoder, 3)
    grid = _check_grid(encoder, pictures)
    _check_images_are_independent(encoder, pictures, grid)
    _check_order_of_locations(encoder, pictures[:1])
    _check_evaluation_mode(encoder, pictures, grid)
    _check_gradients(encoder, pictures)
    _check_state_dict(encoder, pictures, grid)


def _pictures(encoder: GridEncoder, count: int) -> Float[Tensor, "batch 3 size size"]:
    """Pictures of random pixels, preprocessed by the encoder's own preprocessing."""
    size = encoder.preprocessing.size
    random = np.random.default_rng(0)
    pictures = [
        encoder.preprocessing(
            Image.fromarray(random.integers(0, 256, (size, size + 8, 3), dtype=np.uint8))
        )
        for _ in range(count)
    ]
    assert pictures[0].shape == (3, size, size), (
        f"preprocessing gives a tensor of {tuple(pictures[0].shape)}, not (3, {size}, {size})."
    )
    return torch.stack(pictures).to(next(encoder.parameters()).device)


def _encode(encoder: GridEncoder, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        grid: Tensor = encoder(pictures)
    return grid


def _check_grid(encoder: GridEncoder, pictures: Tensor) -> Tensor:
    name, (rows, columns) = encoder.name, encoder.grid_size
    size, stride = encoder.preprocessing.size, encoder.stride
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name), (
        f"name={name!r} does not suit a folder's name: use letters, digits, '.', '_' and '-'."
    )
    assert encoder.locations == rows * columns, (
        f"locations={encoder.locations}, but grid_size={encoder.grid_size} has {rows * columns}."
    )
    # Convolutions without padding may lose a location or two at the edges.
    assert all(side * stride <= size < (side + 3) * stride for side in (rows, columns)), (
        f"stride={stride} and grid_size={encoder.grid_size} do not agree for pictures of "
        f"{size} x {size} pixels."
    )
    grid = _encode(encoder, pictures)
    expected = (len(pictures), encoder.locations, encoder.channels)
    assert grid.shape == expected, (
        f"forward gives a tensor of {tuple(grid.shape)}, not {expected}, that is, "
        "batch x locations x channels."
    )
    assert grid.dtype == torch.float32, f"forward gives {grid.dtype}, not torch.float32."
    assert grid.half().isfinite().all(), (
        "the grid holds NaN, or numbers too large for half precision, in which grids are stored."
    )
    assert not grid[0].equal(grid[1]), "two different pictures have the same grid."
    return grid


def _check_images_are_independent(encoder: GridEncoder, pictures: Tensor, grid: Tensor) -> None:
    for index in range(len(pictures)):
        alone = _encode(encoder, pictures[index : index + 1])
        assert _equal(alone[0], grid[index]), (
            "an image's grid depends on the other images of its batch."
        )


def _check_order_of_locations(encoder: GridEncoder, picture: Tensor) -> None:
    """Compare to which parts of the picture the four corner locations respond.

    The part is measured as the centroid of the magnitude of the gradient of a location with respect
    to the pixels. Looking for the location that responds most to a pixel would be less reliable:
    receptive fields are often as large as the picture, and padding weakens the response of
    locations at the border.
    """
    rows, columns = encoder.grid_size
    assert min(rows, columns) >= 4, (
        f"a grid of {rows} x {columns} is too small to see the order of its locations: check the "
        "encoder with a larger image_size."
    )
    picture = picture.clone().requires_grad_()
    grid: Tensor = encoder(picture)
    assert grid.requires_grad, "the grid has no gradient with respect to the pixels."
    weights = torch.randn(grid.shape[2], generator=torch.Generator().manual_seed(0))
    places = torch.arange(picture.shape[3]) + 0.5

    def centroid(row: int, column: int) -> tuple[float, float]:
        """The horizontal and vertical position of the centroid, in pixels."""
        value = (grid[0, row * columns + column] * weights.to(grid.device)).sum()
        (gradient,) = torch.autograd.grad(value, picture, retain_graph=True)
        response = gradient[0].abs().sum(0).cpu()
        across, down = response.sum(0), response.sum(1)
        return (
            float((across * places).sum() / across.sum()),
            float((down * places).sum() / down.sum()),
        )

    corner = {
        (row, column): centroid(row, column) for row in (0, rows - 1) for column in (0, columns - 1)
    }
    for row in (0, rows - 1):
        (left, above), (right, below) = corner[row, 0], corner[row, columns - 1]
        assert right - left > abs(below - above), (
            f"locations {row * columns} and {row * columns + columns - 1} should respond to the "
            f"left and to the right of the picture, the ends of row {row}: location "
            "r * columns + c must be what stands in row r, column c."
        )
    for column in (0, columns - 1):
        (left, above), (right, below) = corner[0, column], corner[rows - 1, column]
        assert below - above > abs(right - left), (
            f"locations {column} and {(rows - 1) * columns + column} should respond to the top "
            f"and to the bottom of the picture, the ends of column {column}: location "
            "r * columns + c must be what stands in row r, column c."
        )


def _check_evaluation_mode(encoder: GridEncoder, pictures: Tensor, grid: Tensor) -> None:
    assert not any(module.training for module in encoder.modules()), (
        "the encoder is not in evaluation mode after its constructor."
    )
    nn.Sequential(encoder).train()  # like a model that contains the encoder
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert not any(module.training for module in encoder.modules()), (
        "the encoder leaves evaluation mode when train() is called."
    )
    assert _equal(_encode(encoder, pictures), grid), (
        "after train() the same picture has another grid."
    )
    for key, value in encoder.state_dict().items():
        assert value.equal(state[key]), f"a forward pass changes {key}."


def _check_gradients(encoder: GridEncoder, pictures: Tensor) -> None:
    trainable = {id(parameter) for parameter in encoder.last_block()}
    named = dict(encoder.named_parameters())
    learning = {name for name, parameter in named.items() if parameter.requires_grad}
    grid: Tensor = encoder(pictures)
    if not learning:
        assert not grid.requires_grad, "nothing is trainable, but the grid requires a gradient."
        return
    for name in named:
        assert (name in learning) == (id(named[name]) in trainable), (
            f"{name} is {'' if name in learning else 'not '}trainable, but last_block() says "
            "otherwise."
        )
    weights = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    (grid * weights.to(grid.device)).mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in named.items():
        if name in learning:
            assert parameter.grad is not None, f"{name} is trainable, but gets no gradient."
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is NaN or infinite."
        else:
            assert parameter.grad is None, f"{name} is frozen, but gets a gradient."
    assert any(named[name].grad.count_nonzero() for name in learning), (  # type: ignore[union-attr]
        "the gradients of all trainable parameters are zero."
    )


def _check_state_dict(encoder: GridEncoder, pictures: Tensor, grid: Tensor) -> None:
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert fingerprint(encoder.name, state) == encoder.fingerprint, (
        "fingerprint is not that of the name and the state dict."
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.5)
    assert not _equal(_encode(encoder, pictures), grid), (
        "halving all parameters does not change the grid."
    )
    encoder.load_state_dict(state)
    assert _equal(_encode(encoder, pictures), grid), (
        "loading the encoder's own state dict does not bring its grid back."
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two grids are equal up to rounding."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))

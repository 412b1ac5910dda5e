"""What the checks have in common: comparisons with informative messages."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from captioning.kernels.backend import use_backend

Module = TypeVar("Module", bound=nn.Module)

STEP = 1e-5
"""Step size of finite differences, in double precision."""


def assert_close(ours: Tensor, theirs: Tensor, message: str, tolerance: float = 1e-4) -> None:
    """Require two tensors to be equal up to rounding.

    Raises:
        AssertionError: they differ; the message begins with ``message`` and says by how much.
    """
    assert ours.shape == theirs.shape, (
        f"{message}: the shapes are {tuple(ours.shape)} and {tuple(theirs.shape)}."
    )
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
        apart = (ours - theirs).abs().nan_to_num(nan=torch.inf).max().item()
        raise AssertionError(f"{message}: they differ by up to {apart:.3g}.")


def random_like(tensor: Tensor, seed: int = 7) -> Tensor:
    """Random numbers of a tensor's shape and type, which are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def copied(module: Module) -> Module:
    """A copy of a module.

    Raises:
        AssertionError: the module keeps results of an earlier call, which cannot be copied.
    """
    for name, part in module.named_modules(prefix=type(module).__name__):
        for attribute, value in vars(part).items():
            assert not (isinstance(value, Tensor) and value.grad_fn), (
                f"{name}.{attribute} keeps a tensor of an earlier call: what the next word of a "
                "caption needs belongs into the state of the decoder, which decoding selects and "
                "reorders with the captions."
            )
    return copy.deepcopy(module)


def in_double(module: nn.Module) -> nn.Module:
    """A copy in double precision."""
    return copied(module).double()


def check_gradients(
    loss: Callable[[], Tensor], parameters: Sequence[tuple[str, Tensor]], what: str
) -> None:
    """Compare gradients with finite differences, along a random direction for each parameter.

    Args:
        loss: computes a scalar from the parameters, deterministically and in double precision.
        parameters: leaf tensors in double precision, with their names.
        what: the name of the part that is checked, for messages.

    Raises:
        AssertionError: a parameter gets no gradient, or the gradient differs from finite
            differences.
    """
    leaves = [parameter for _, parameter in parameters]
    with use_backend("torch"):
        value = loss()
        assert value.dtype == torch.float64, (
            f"{what}: a result is in {value.dtype} where everything that is given is in double "
            "precision; in place of a cast such as `.float()`, use "
            "`captioning.kernels.ops.at_least_single`."
        )
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        for (name, parameter), gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None, (
                f"{what}: {name} gets no gradient, so it cannot be learned."
            )
            direction = random_like(parameter)
            ends = []
            with torch.no_grad():
                for sign in (1, -1):
                    parameter += sign * STEP * direction
                    ends.append(loss().item())
                    parameter -= sign * STEP * direction
            slope = (ends[0] - ends[1]) / (2 * STEP)
            found = (gradient * direction).sum().item()
            assert abs(found - slope) <= 1e-5 + 1e-4 * abs(slope), (
                f"{what}: along a random direction, the gradient with respect to {name} is "
                f"{found:.6g}, and finite differences in double precision give {slope:.6g}."
            )


def devices() -> list[torch.device]:
    """The devices on which the checks run: the CPU, and a GPU if there is one."""
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]

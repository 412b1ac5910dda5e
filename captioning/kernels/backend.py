"""Which implementation computes an op: plain PyTorch, or C on a CPU and Triton on a GPU.

``auto`` uses compiled kernels where they are available, and PyTorch elsewhere. ``native`` fails if
no kernel can be compiled. ``torch`` computes every op by :mod:`captioning.kernels.reference`, in
plain autograd. The choice applies within :func:`use_backend`, for the thread that entered it::

    with use_backend("torch"):
        output = decoder(grid, tokens)

Outside of the block, and in other threads, the choice is ``auto``. Kernels support single precision
and bfloat16. For any other type (double precision, for instance), for shapes that would have to be
broadcast, and under ``torch.func`` or forward-mode differentiation, the reference computes an op
whatever the choice.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from captioning.kernels.library import CompilationError, Kernels
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)

Backend = Literal["auto", "torch", "native"]

OPS: Final = {
    "additive_attention": ("c", "triton"),
    "lstm_cell": ("c", "triton"),
    "attention_recurrence": ("c",),
    "standardize": ("c",),
    "cross_entropy": ("c",),
    "log_sum_exp": ("c",),
    "topk": ("c",),
    "mask_tokens": ("c",),
}
"""The ops that have compiled kernels, and the languages in which they have them."""

_choice: ContextVar[Backend] = ContextVar("backend", default="auto")


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Compute the ops within the block with a backend.

    Raises:
        CaptioningError: there is no such backend.
    """
    if backend not in get_args(Backend):
        raise CaptioningError(f"backend={backend}: choose {', '.join(get_args(Backend))}.")
    token = _choice.set(backend)
    try:
        yield
    finally:
        _choice.reset(token)


def current_backend() -> Backend:
    """The backend of the innermost :func:`use_backend`; outside of any, ``auto``."""
    return _choice.get()


def check_backend(backend: Backend, device: str) -> None:
    """Refuse ``native`` if no kernels can be compiled for a kind of device.

    Raises:
        CaptioningError: the kernels cannot be compiled; the message says why.
    """
    if backend == "native" and load_kernels(device) is None:
        raise CaptioningError(
            f"backend=native: nothing can be compiled for {device} here ({_reasons[device]}); "
            "use backend=auto or backend=torch."
        )


def report(device: str, backend: Backend | None = None) -> dict[str, str]:
    """The implementation of each op on a kind of device: ``torch``, ``c`` or ``triton``.

    Args:
        device: the kind of device, such as ``cpu`` or ``cuda``.
        backend: the backend; None takes the current one.
    """
    kernels = None if (backend or current_backend()) == "torch" else load_kernels(device)
    language = kernels.language if kernels else "torch"
    return {op: language if language in languages else "torch" for op, languages in OPS.items()}


def kernels_for(op: str, *tensors: Tensor) -> Kernels | None:
    """The compiled kernels that compute an op on these tensors; None if its reference does.

    Args:
        op: one of :data:`OPS`.
        tensors: arguments of the op; kernels are used only if all have the same supported type.

    Raises:
        CaptioningError: the backend is ``native`` and nothing can be compiled.
    """
    backend, (device, dtype) = current_backend(), (tensors[0].device.type, tensors[0].dtype)
    if backend == "torch" or dtype not in (torch.float32, torch.bfloat16):
        return None
    if any(tensor.dtype != dtype for tensor in tensors) or is_transformed():
        return None
    check_backend(backend, device)
    kernels = load_kernels(device)
    return kernels if kernels is not None and kernels.language in OPS[op] else None


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is active.

    Both work on PyTorch's own operations only: a kernel would read the values and lose the
    tangents.
    """
    level: int = forward_ad._current_level
    return level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def is_observed() -> bool:
    """Whether a mode intercepts PyTorch's functions or operators, to count or change them."""
    functions: int = torch._C._len_torch_function_stack()
    operators: int = torch._C._len_torch_dispatch_stack()
    return functions + operators > 0


_reasons: dict[str, str] = {}


@functools.cache
def load_kernels(device: str) -> Kernels | None:
    """The kernels for a kind of device, compiled on first use.

    Returns None, and logs the reason, if they are not available; PyTorch then computes everything.
    """
    try:
        if device == "cpu":
            from captioning.kernels.cpu.bindings import load_c_kernels

            return load_c_kernels()
        if device == "cuda":
            from captioning.kernels.triton.launch import load_triton_kernels

            return load_triton_kernels()
        _reasons[device] = "there are kernels for cpu and cuda only"
    except (CompilationError, ImportError) as error:
        _reasons[device] = str(error)
        log.info("Attention and LSTM run in plain PyTorch, which is slower: %s", error)
    return None

"""Stand-in for the module of the same name on another branch; replaced at the merge."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from captioning.kernels import native
from captioning.support.errors import CaptioningError

Backend = Literal["auto", "torch", "native"]


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Compute the ops within the block by a backend."""
    if backend not in get_args(Backend):
        raise CaptioningError(f"backend={backend}: choose {', '.join(get_args(Backend))}.")
    before, native.wanted = native.wanted, backend != "torch"
    try:
        yield
    finally:
        native.wanted = before


def check_backend(backend: Backend, device: str) -> None:
    """Refuse ``native`` where nothing can be compiled for a kind of device."""
    if backend == "native" and native.kernels(device) is None:
        raise CaptioningError(f"backend=native: nothing can be compiled for {device} here.")


def report(device: str, backend: Backend | None = None) -> dict[str, str]:
    """What computes each op on a kind of device: ``torch``, ``c`` or ``triton``."""
    fast = {"cpu": "c", "cuda": "triton"}.get(device, "torch")
    return {"additive_attention": "torch" if backend == "torch" else fast}

"""The ways in which attention and the LSTM's cell are computed."""

import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from captioning.models import native


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose a way for one test: ``C``, ``torch``, or ``Triton``, in its interpreter on the CPU."""

    def choose(way: str) -> None:
        if way == "C" and native.kernels("cpu") is None:
            pytest.skip("there is no C compiler")
        monkeypatch.setattr(native, "wanted", way != "torch")
        if way == "Triton":
            if torch.cuda.is_available():
                pytest.skip("Triton compiles for the GPU here, and then does not interpret")
            gpu = pytest.importorskip("captioning.models.gpu")
            monkeypatch.setattr(gpu, "functions", untyped(gpu.functions))
            monkeypatch.setattr(native, "kernels", lambda device: gpu.TritonKernels())

    return choose


def untyped(module: ModuleType) -> ModuleType:
    """A copy of a module, without the type checks that the tests add to every function."""
    assert module.__spec__ is not None
    assert module.__spec__.origin is not None
    spec = importlib.util.spec_from_file_location("untyped", module.__spec__.origin)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy

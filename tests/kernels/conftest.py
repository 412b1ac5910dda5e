"""Fixtures of the tests of kernels."""

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import jaxtyping
import pytest
import torch

from captioning.kernels import backend as backends
from captioning.kernels.backend import use_backend


@pytest.fixture(params=["torch", "c", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test with each implementation of the ops; with Triton in its interpreter on the CPU."""
    language: str = request.param
    if language == "c" and backends.load_kernels("cpu") is None:
        pytest.skip("there is no C compiler")
    if language == "triton":
        if torch.cuda.is_available():
            pytest.skip("Triton compiles for the GPU here, and then does not interpret")
        launch = pytest.importorskip("captioning.kernels.triton.launch")
        monkeypatch.setattr(launch, "functions", without_type_checks(launch.functions))
        monkeypatch.setattr(backends, "load_kernels", lambda device: launch.TritonKernels())
    with use_backend("torch" if language == "torch" else "native"):
        yield language


def without_type_checks(module: ModuleType) -> ModuleType:
    """A copy of a module, without the type checks that the tests add to every function."""
    spec = module.__spec__
    assert spec is not None
    assert spec.origin is not None
    new_spec = importlib.util.spec_from_file_location("without_type_checks", spec.origin)
    assert new_spec is not None
    assert new_spec.loader is not None
    copy = importlib.util.module_from_spec(new_spec)
    new_spec.loader.exec_module(copy)
    return copy


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the type checks that the tests add, to see what a user without them would."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

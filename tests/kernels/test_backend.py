"""What computes an op: the choice, what falls back to PyTorch, and what is reported."""

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from captioning.kernels import backend
from captioning.kernels.backend import (
    check_backend,
    current_backend,
    kernels_for,
    load_kernels,
    report,
    use_backend,
)
from captioning.kernels.library import CompilationError
from captioning.support.errors import CaptioningError

SINGLE, HALF, DOUBLE = torch.ones(1), torch.ones(1).bfloat16(), torch.ones(1).double()

needs_compiler = pytest.mark.skipif(load_kernels("cpu") is None, reason="there is no C compiler")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing can be compiled."""

    def load_c_kernels() -> None:
        raise CompilationError("cc: No such file or directory")

    monkeypatch.setattr("captioning.kernels.cpu.bindings.load_c_kernels", load_c_kernels)
    monkeypatch.setattr(backend, "load_kernels", backend.load_kernels.__wrapped__)


def test_the_innermost_choice_holds_and_the_outer_one_returns_even_after_an_error() -> None:
    assert current_backend() == "auto"
    with use_backend("torch"):
        with suppress(ZeroDivisionError), use_backend("native"):
            assert current_backend() == "native"
            raise ZeroDivisionError
        assert current_backend() == "torch"
    assert current_backend() == "auto"


def test_the_choice_of_one_thread_is_not_that_of_another() -> None:
    seen: list[str] = []
    with use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_a_backend_that_does_not_exist_is_refused_with_those_that_do() -> None:
    unchecked: Any = inspect.unwrap(use_backend)  # without the type checks of the tests
    with pytest.raises(CaptioningError, match="backend=cuda: choose auto, torch, native"):
        next(unchecked("cuda"))


@needs_compiler
def test_compiled_kernels_take_single_precision_and_bfloat16_of_one_type() -> None:
    for tensors in ((SINGLE, SINGLE), (HALF, HALF)):
        assert kernels_for("lstm_cell", *tensors) is not None
        with use_backend("native"):
            assert kernels_for("lstm_cell", *tensors) is not None
        with use_backend("torch"):
            assert kernels_for("lstm_cell", *tensors) is None
    for tensors in ((DOUBLE, DOUBLE), (SINGLE, HALF), (SINGLE.half(),)):
        with use_backend("native"):
            assert kernels_for("lstm_cell", *tensors) is None


@needs_compiler
def test_the_report_says_what_ran() -> None:
    assert set(report("cpu").values()) == {"c"}
    assert report("cpu").keys() == backend.OPS.keys()
    assert set(report("cpu", "torch").values()) == {"torch"}
    with use_backend("torch"):
        assert set(report("cpu").values()) == {"torch"}


def test_with_triton_the_ops_that_have_no_kernel_in_it_run_in_pytorch(
    use: Callable[[str], None],
) -> None:
    use("Triton")
    found = report("cpu")
    assert found["additive_attention"] == found["lstm_cell"] == "triton"
    assert found["topk"] == found["cross_entropy"] == found["standardize"] == "torch"
    assert kernels_for("topk", SINGLE) is None


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_falls_back_with_a_line_in_the_log_and_native_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger=backend.__name__):
        assert kernels_for("lstm_cell", SINGLE) is None
    assert "cc: No such file or directory" in caplog.text
    assert set(report("cpu").values()) == {"torch"}
    check_backend("auto", "cpu")
    check_backend("torch", "cpu")
    message = (
        r"backend=native: nothing can be compiled for cpu here \(cc: No such file.*use backend"
    )
    with pytest.raises(CaptioningError, match=message):
        check_backend("native", "cpu")
    with use_backend("native"), pytest.raises(CaptioningError, match=message):
        kernels_for("lstm_cell", SINGLE)


def test_a_device_without_kernels_is_named() -> None:
    assert set(report("mps").values()) == {"torch"}
    with pytest.raises(CaptioningError, match=r"for mps here .there are kernels for cpu and cuda"):
        check_backend("native", "mps")

"""The choice of a backend: what it computes with, whom it concerns, and what it cannot do."""

import ctypes
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from right_support import (
    KINDS,
    TOKENS,
    assert_directional,
    captions_of,
    decoder_loss,
    small_decoder,
    small_grid,
    trained,
)  # fmt: skip
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from captioning.kernels import backend as backends
from captioning.kernels import cuda_graphs, ops
from captioning.kernels.backend import OPS, current_backend, report, use_backend
from captioning.kernels.cpu import bindings
from captioning.kernels.deferred import DeferredWeightGradients
from captioning.kernels.ops import AdditiveKeys, Rows
from captioning.support.errors import CaptioningError

needs_compiler = pytest.mark.skipif(
    backends.load_kernels("cpu") is None, reason="there is no C compiler"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning:triton"),
    # PyTorch's own, for forward-mode differentiation.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a compiler, where nothing was compiled before."""
    monkeypatch.setenv("CC", "/nonexistent/cc")
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path))
    backends.load_kernels.cache_clear()
    yield
    backends.load_kernels.cache_clear()


# Nothing written by hand under backend=torch


@each_kind
def test_torch_computes_with_nothing_written_by_hand(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something written by hand was called")

    monkeypatch.setattr(bindings.CKernels, "call", refuse)
    monkeypatch.setattr(bindings.CKernels, "__init__", refuse)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(torch.autograd.Function, "apply", refuse)
    monkeypatch.setattr(DeferredWeightGradients, "__init__", refuse)
    monkeypatch.setattr(cuda_graphs, "capture", refuse)
    monkeypatch.setattr(ops, "byte_dropout", refuse)
    decoder = small_decoder(kind, dropout=0.5, recurrent_dropout=0.5, word_dropout=0.5)
    grid = small_grid()
    with use_backend("torch"):
        decoder_loss(decoder, grid).backward()
        output = decoder(grid, TOKENS)
        ops.cross_entropy(output.logits, output.targets, 0.1).backward()
        assert captions_of(decoder, grid)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@needs_compiler
def test_the_test_above_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something written by hand was called")

    monkeypatch.setattr(torch.autograd.Function, "apply", refuse)
    with pytest.raises(AssertionError, match="by hand"):
        decoder_loss(small_decoder(), small_grid())


# What backend=torch is capable of


@each_kind
def test_torch_can_be_differentiated_twice(kind: str) -> None:
    """The gradient of the gradient's norm, against central differences."""
    decoder, grid = small_decoder(kind).double(), small_grid()
    leaves = trained(decoder)

    def norm() -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(
                decoder_loss(decoder, grid), list(leaves.values()), create_graph=True
            )
            return sum((each**2).sum() for each in found)

    with use_backend("torch"):
        second = torch.autograd.grad(norm(), list(leaves.values()), allow_unused=True)
        assert_directional(leaves, dict(zip(leaves, second, strict=True)), lambda: norm().detach())


ROWS = Rows(torch.tensor([3, 0, 2]), 2, 2)
DOUBLE_OPS = {
    "additive_attention": (
        lambda query, keys, weight, grid: ops.additive_attention(
            query, AdditiveKeys(keys), weight, grid, ROWS
        ),
        [(3, 4), (2, 3, 4), (4,), (2, 3, 5)],
    ),
    "lstm_cell": (ops.lstm_cell, [(3, 2), (3, 8), (3, 8)]),
    "standardize": (ops.standardize, [(2, 3, 4)]),
    "cross_entropy": (
        lambda logits: ops.cross_entropy(logits, torch.tensor([1, 0, 3]), 0.1), [(3, 5)],
    ),
    "log_sum_exp": (ops.log_sum_exp, [(3, 5)]),
    "topk": (lambda logits: ops.topk(logits, 2)[0], [(3, 5)]),
    "mask_tokens": (
        lambda logits: ops.mask_tokens(logits * 1, torch.tensor([[1], [0], [3]])).exp(), [(3, 5)],
    ),
}  # fmt: skip


def test_each_op_is_tested() -> None:
    # In double precision there is no op for the recurrence: a loop over the other ops computes it.
    assert DOUBLE_OPS.keys() | {"attention_recurrence"} == OPS.keys()


@pytest.mark.parametrize("name", DOUBLE_OPS)
def test_each_op_of_torch_against_finite_differences(name: str) -> None:
    """First and second derivatives, forward mode, and batched gradients."""
    op, shapes = DOUBLE_OPS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    with use_backend("torch"):
        assert torch.autograd.gradcheck(op, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(op, inputs)


@pytest.mark.parametrize("name", DOUBLE_OPS)
@pytest.mark.parametrize("choice", ["auto", "native"])
@needs_compiler
def test_no_tangent_is_lost_under_any_backend(name: str, choice: str) -> None:
    """Kernels would read the numbers and drop the tangents: the reference computes instead."""
    op, shapes = DOUBLE_OPS[name]
    torch.manual_seed(0)
    primals = tuple(torch.randn(shape) for shape in shapes)
    tangents = tuple(torch.randn(shape) for shape in shapes)
    with use_backend("torch"):
        expected = jvp(op, primals, tangents)
    with use_backend(choice), torch.no_grad():
        torch.testing.assert_close(jvp(op, primals, tangents), expected)


def log_probs_of(decoder: torch.nn.Module) -> object:
    def compute(parameters: dict[str, Tensor], grid: Tensor) -> Tensor:
        return functional_call(decoder, parameters, (grid, TOKENS)).token_log_probs()

    return compute


@each_kind
@pytest.mark.parametrize("choice", ["torch", "auto"])
def test_functional_transforms_of_a_model(kind: str, choice: str) -> None:
    decoder = small_decoder(kind).eval()
    parameters = {name: each.detach() for name, each in decoder.named_parameters()}
    compute, grid = log_probs_of(decoder), small_grid()
    with use_backend(choice):
        with use_backend("torch"):
            plain = functional_call(
                decoder, {n: p.clone().requires_grad_() for n, p in parameters.items()},
                (grid, TOKENS),
            ).token_log_probs()  # fmt: skip
        torch.testing.assert_close(compute(parameters, grid), plain.detach())
        slopes = grad(lambda p: compute(p, grid).sum())(parameters)
        decoder.zero_grad()
        with use_backend("torch"):
            decoder(grid, TOKENS).token_log_probs().sum().backward()
        for name, parameter in decoder.named_parameters():
            torch.testing.assert_close(slopes[name], parameter.grad, rtol=1e-4, atol=1e-5)
        tangents = {name: torch.ones_like(each) for name, each in parameters.items()}
        _, slope = jvp(lambda p: compute(p, grid).sum(), (parameters,), (tangents,))
        expected = sum(each.sum() for each in slopes.values())
        torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-3)
        grids = torch.stack([small_grid(seed) for seed in range(3)])
        found = vmap(lambda one: compute(parameters, one))(grids)
        for ours, one in zip(found, grids, strict=True):
            torch.testing.assert_close(ours, compute(parameters, one), rtol=1e-4, atol=1e-5)
        others = [decoder, small_decoder(kind).eval()]
        with torch.no_grad():
            for parameter in others[1].parameters():
                parameter.mul_(0.5)
        stacked, _ = stack_module_state(others)
        stacked = {name: each.detach() for name, each in stacked.items()}
        both = vmap(compute, in_dims=(0, None))(stacked, grid)
        for ours, model in zip(both, others, strict=True):
            with torch.no_grad():
                expected = model(grid, TOKENS).token_log_probs()
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_functional_call_with_tensors_that_are_no_leaves() -> None:
    """As in meta-learning: the weights of a step of gradient descent, under each backend."""
    decoder, grid = small_decoder(), small_grid()
    scale = torch.tensor(0.9, requires_grad=True)
    found = []
    for choice in ("torch", "auto"):
        with use_backend(choice):
            weights = {name: each * scale for name, each in decoder.named_parameters()}
            output = functional_call(decoder, weights, (grid, TOKENS)).token_log_probs().sum()
            found.append(torch.autograd.grad(output, [scale, *decoder.parameters()]))
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "c"], indirect=True)
def test_anomaly_mode(backend: str) -> None:
    decoder, grid = small_decoder(), small_grid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.autograd.detect_anomaly():
            decoder_loss(decoder, grid).backward()
            with torch.no_grad():
                decoder.hidden_gates.weight[0, 0] = float("nan")
            with pytest.raises(RuntimeError, match="returned nan values"):
                decoder_loss(decoder, grid).backward()


# Second derivatives of kernels


@needs_compiler
@pytest.mark.parametrize("name", ["additive_attention", "lstm_cell", "cross_entropy"])
def test_a_second_derivative_of_a_kernel_is_refused(name: str) -> None:
    op, shapes = DOUBLE_OPS[name]
    for differentiated in range(len(shapes)):
        inputs = [torch.randn(shape) for shape in shapes]
        inputs[differentiated].requires_grad_()
        with use_backend("native"):
            out = op(*inputs)
            out = out if isinstance(out, tuple) else (out,)
            loss = sum((each**2).sum() for each in out)
            with pytest.raises(RuntimeError, match="backend=torch"):
                torch.autograd.grad(loss, [inputs[differentiated]], create_graph=True)


@needs_compiler
@each_kind
def test_a_second_derivative_of_a_compiled_model_is_refused(kind: str) -> None:
    decoder, grid = small_decoder(kind), small_grid()
    for name, parameter in decoder.named_parameters():
        with use_backend("native"):
            loss = decoder_loss(decoder, grid)
        try:
            torch.autograd.grad(loss, [parameter], create_graph=True)
        except RuntimeError as error:
            assert "backend=torch" in str(error), name  # noqa: PT017
        else:  # past the loop over words
            assert name.startswith("output_"), name


# The choice


def test_native_fails_where_nothing_can_be_compiled(no_compiler: None) -> None:
    with use_backend("native"), pytest.raises(CaptioningError) as caught:
        decoder_loss(small_decoder(), small_grid())
    message = str(caught.value)
    assert "backend=native" in message
    assert "/nonexistent/cc" in message
    assert "backend=torch" in message


def test_auto_falls_back_and_says_so(no_compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    with use_backend("torch"):
        expected = decoder_loss(small_decoder(), small_grid())
    with caplog.at_level(logging.INFO, "captioning"):
        found = decoder_loss(small_decoder(), small_grid())
    assert torch.equal(found, expected)
    assert ["plain PyTorch" in each.message for each in caplog.records] == [True]
    assert "/nonexistent/cc" in caplog.text
    assert set(report("cpu").values()) == {"torch"}
    assert report("cpu").keys() == OPS.keys()


def test_auto_falls_back_from_a_library_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"cut short")
    monkeypatch.setattr(bindings, "compiled_library", lambda folder: broken)
    backends.load_kernels.cache_clear()
    try:
        assert decoder_loss(small_decoder(), small_grid()).isfinite()
        with use_backend("native"), pytest.raises(CaptioningError, match="native"):
            decoder_loss(small_decoder(), small_grid())
    finally:
        backends.load_kernels.cache_clear()


@needs_compiler
def test_the_report_says_what_runs() -> None:
    assert set(report("cpu").values()) == {"c"}
    assert set(report("cpu", "torch").values()) == {"torch"}
    with use_backend("torch"):
        assert set(report("cpu").values()) == {"torch"}
        assert set(report("cpu", "auto").values()) == {"c"}


def test_a_choice_ends_with_its_block() -> None:
    assert current_backend() == "auto"
    with use_backend("torch"):
        with use_backend("native"):
            assert current_backend() == "native"
        assert current_backend() == "torch"
        with pytest.raises(ZeroDivisionError), use_backend("auto"):
            raise ZeroDivisionError
        assert current_backend() == "torch"
    assert current_backend() == "auto"


def test_a_choice_concerns_its_own_thread() -> None:
    seen = []
    with use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("name", ["C", "Torch", "", "triton"])
def test_a_wrong_name_is_refused(name: str) -> None:
    plain = getattr(use_backend, "__wrapped__", use_backend)
    with pytest.raises(Exception, match=r"auto, torch, native|Literal"), plain(name):
        pass


def test_a_wrong_name_is_refused_with_a_sentence() -> None:
    """Without the type checks of the tests."""
    code = (
        "from captioning.kernels.backend import use_backend\n"
        "try:\n"
        "    with use_backend('fast'): pass\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "CaptioningError backend=fast: choose auto, torch, native."


@needs_compiler
def test_a_choice_within_the_loop_over_words_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that asks for torch gets no deferred gradients either."""
    decoder, grid = small_decoder(), small_grid()
    forward = type(decoder).recurrent_step

    def in_torch(*args: object, **kwargs: object) -> object:
        with use_backend("torch"):
            return forward(decoder, *args, **kwargs)

    monkeypatch.setattr(decoder, "recurrent_step", in_torch)
    loss = decoder_loss(decoder, grid)
    names = ["hidden_gates.weight", "attention.query.weight", "gate.weight"]
    weights = [decoder.get_parameter(name) for name in names]
    first = torch.autograd.grad(loss, weights, create_graph=True)
    assert all(each.requires_grad for each in first)

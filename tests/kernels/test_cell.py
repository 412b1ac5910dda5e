"""The LSTM cell against torch.nn.LSTMCell in double precision, by each implementation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captioning.kernels.backend import current_backend
from captioning.kernels.ops import lstm_cell

pytestmark = pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning:triton")

ROWS = 7


@pytest.fixture(params=["C", "torch", "Triton"], autouse=True)
def implementation(request: pytest.FixtureRequest, use: Callable[[str], None]) -> None:
    """Let each test run with each implementation."""
    use(request.param)


def leaves_of(units: int, addends: int, scale: float, dtype: torch.dtype) -> list[Tensor]:
    """The cell before, and what adds up to the gates."""
    generator = torch.Generator().manual_seed(0)
    cell = torch.randn(ROWS, units, generator=generator)
    parts = [scale * torch.randn(ROWS, 4 * units, generator=generator) for _ in range(addends)]
    return [cell.requires_grad_(), *(part.to(dtype).requires_grad_() for part in parts)]


def torchs(cell: Tensor, *addends: Tensor) -> tuple[Tensor, Tensor]:
    """torch.nn.LSTMCell, which is given the sum of the addends as its input."""
    units = cell.shape[1]
    reference = nn.LSTMCell(4 * units, units, bias=False).double()
    with torch.no_grad():
        reference.weight_ih.copy_(torch.eye(4 * units))
    gates = sum(part.double() for part in addends)
    hidden, cell = reference(gates, (torch.zeros(ROWS, units).double(), cell.double()))
    return hidden, cell


@pytest.mark.parametrize("units", [1, 16, 33])
@pytest.mark.parametrize("addends", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_state_and_gradients_are_those_of_torchs_own_cell(
    units: int, addends: int, scale: float
) -> None:
    leaves = leaves_of(units, addends, scale, torch.float32)
    found, expected = lstm_cell(*leaves), torchs(*leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    upstream = [
        torch.randn(ROWS, units, generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    ]
    got = torch.autograd.grad(found, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, [each.double() for each in upstream])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_only_the_gradients_are_rounded() -> None:
    leaves = leaves_of(33, 2, 1.0, torch.bfloat16)
    found, expected = lstm_cell(*leaves), torchs(*leaves)
    # The compiled cell adds up in single precision, PyTorch in bfloat16.
    tolerance = 1e-6 if current_backend() == "native" else 0.02
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    ones = [torch.ones(ROWS, 33)] * 2
    got = torch.autograd.grad(found, leaves, ones)
    wanted = torch.autograd.grad(expected, leaves, [each.double() for each in ones])
    assert [each.dtype for each in got] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0.01, atol=0.01)


def test_an_addend_may_be_some_columns_of_a_larger_product() -> None:
    cell, first, second = leaves_of(16, 2, 1.0, torch.float32)
    larger = torch.cat([first, torch.full((ROWS, 9), 1e9)], 1)
    turned = second.T.contiguous().T
    found = lstm_cell(cell, larger[:, :64], turned)
    expected = lstm_cell(cell, first, second)
    assert torch.equal(found[0], expected[0])


def test_nan_is_not_hidden_and_infinity_saturates() -> None:
    cell, gates = leaves_of(2, 1, 1.0, torch.float32)
    with torch.no_grad():
        gates[1, 0] = float("nan")
        gates[2] = float("inf")
        gates[3] = -float("inf")
    hidden, new_cell = lstm_cell(cell, gates)
    assert hidden.isnan().nonzero().tolist() == [[1, 0]]
    torch.testing.assert_close(new_cell[2], cell[2] + 1)
    torch.testing.assert_close(new_cell[3], torch.zeros(2))


def test_without_gradients_the_state_is_the_same() -> None:
    leaves = leaves_of(17, 3, 1.0, torch.float32)
    expected = lstm_cell(*leaves)
    with torch.no_grad():
        found = lstm_cell(*leaves)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_double_precision_stays_double_precision() -> None:
    leaves = [
        leaf.detach().double().requires_grad_() for leaf in leaves_of(5, 3, 1.0, torch.float32)
    ]
    assert torch.autograd.gradcheck(lstm_cell, leaves)
    for ours, theirs in zip(lstm_cell(*leaves), torchs(*leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_one_of_the_results_may_have_a_gradient() -> None:
    leaves = leaves_of(16, 2, 1.0, torch.float32)
    for which in (0, 1):
        got = torch.autograd.grad(lstm_cell(*leaves)[which].sum(), leaves)
        wanted = torch.autograd.grad(torchs(*leaves)[which].sum(), leaves)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

"""Loss and choice of words against PyTorch in double precision, by each implementation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captioning.kernels.backend import current_backend
from captioning.kernels.ops import cross_entropy, log_sum_exp, mask_tokens, topk


@pytest.fixture(params=["C", "torch"], autouse=True)
def implementation(request: pytest.FixtureRequest, use: Callable[[str], None]) -> None:
    """Let each test run with each implementation."""
    use(request.param)


def logits_of(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    logits = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return logits.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("words", [2, 15, 16, 50, 2600])
def test_the_loss_and_its_gradient_are_those_of_pytorch(
    dtype: torch.dtype, smoothing: float, words: int
) -> None:
    logits = logits_of(7, words, dtype=dtype)
    targets = torch.tensor([0, 1, 0, words - 1, words // 2, 1, 1])  # 0 is padding
    exact = logits.detach().double().requires_grad_()
    ours = cross_entropy(logits, targets, smoothing)
    theirs = nn.functional.cross_entropy(
        exact[targets != 0], targets[targets != 0], label_smoothing=smoothing
    )
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    (got,) = torch.autograd.grad(2 * ours, logits)
    (wanted,) = torch.autograd.grad(2 * theirs, exact)
    assert got.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), wanted, rtol=max(rounding, 1e-5), atol=1e-7)


def test_large_logits_do_not_overflow_and_nan_is_not_hidden() -> None:
    logits = logits_of(3, 40, scale=1e4)
    targets = torch.tensor([1, 2, 3])
    exact = nn.functional.cross_entropy(logits.double(), targets)
    torch.testing.assert_close(cross_entropy(logits, targets).double(), exact, rtol=1e-6, atol=0)
    with torch.no_grad():
        logits[1, 33] = float("nan")
    assert cross_entropy(logits, targets).isnan()
    assert log_sum_exp(logits).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", [3, 16, 41])
def test_normalisers_and_highest_logits_of_any_leading_dimensions(
    dtype: torch.dtype, words: int
) -> None:
    logits = logits_of(2, 3, words, dtype=dtype).detach()
    logits[1, 2, 1] = -torch.inf
    expected = logits.double().logsumexp(-1)
    torch.testing.assert_close(log_sum_exp(logits).double(), expected, rtol=1e-6, atol=1e-6)
    values, which = topk(logits, 5)
    assert values.shape == which.shape == (2, 3, min(5, words))
    assert values.equal(logits.float().sort(-1, descending=True).values[..., :5])
    possible = values > -torch.inf  # an impossible word stands for no word
    assert values[possible].equal(logits.float().gather(-1, which)[possible])
    marked = which.where(possible, -1 - torch.arange(which.shape[-1]))
    assert (marked.sort(-1).values.diff() > 0).all()  # no word twice


@pytest.mark.parametrize("words", [3, 16, 41])
def test_the_highest_of_log_probabilities_which_are_all_negative(words: int) -> None:
    logits = logits_of(4, words).detach().log_softmax(-1) - 1
    assert topk(logits, 2)[0].equal(logits.topk(2).values)
    assert topk(logits, 2)[1].equal(logits.topk(2).indices)


def test_a_transposed_tensor_is_read_as_what_it_is() -> None:
    logits = logits_of(9, 4).detach()
    torch.testing.assert_close(log_sum_exp(logits.T), logits.T.logsumexp(-1))
    assert topk(logits.T, 2)[0].equal(logits.T.topk(2).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_words_and_no_others_become_impossible(dtype: torch.dtype) -> None:
    logits = logits_of(2, 3, 18, dtype=dtype).detach()
    before = logits.clone()
    banned = torch.tensor([0, 17, 3]).expand(2, 3, -1).clone()
    banned[1, 2] = torch.tensor([5, 5, 16])  # of other rows others, and one may be twice
    same = mask_tokens(logits, banned)
    assert same.data_ptr() == logits.data_ptr()
    expected = [[{0, 3, 17}] * 3, [{0, 3, 17}, {0, 3, 17}, {5, 16}]]
    for image in range(2):
        for caption in range(3):
            gone = {w for w in range(18) if logits[image, caption, w] == -torch.inf}
            assert gone == expected[image][caption]
    possible = logits > -torch.inf
    assert logits[possible].equal(before[possible])
    apart = logits_of(18, 6, dtype=dtype).detach()
    mask_tokens(apart.T, torch.arange(6)[:, None])
    assert (apart == -torch.inf).nonzero().tolist() == [[n, n] for n in range(6)]


def test_of_equal_logits_the_c_kernel_takes_the_first_words() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0, 1.0]).repeat(1, 4)
    values, words = topk(logits, 3)
    assert values.tolist() == [[2.0, 2.0, 2.0]]
    assert len(set(words[0].tolist())) == 3
    if current_backend() == "native":
        assert words.tolist() == [[1, 3, 4]]


def test_logits_that_need_gradients_get_them() -> None:
    logits = logits_of(3, 20)
    (got,) = torch.autograd.grad(log_sum_exp(logits).sum(), logits)
    torch.testing.assert_close(got, logits.softmax(-1))
    (got,) = torch.autograd.grad(topk(logits, 2)[0].sum(), logits)
    assert got.sum(-1).tolist() == [2, 2, 2]


def test_double_precision_stays_double_precision() -> None:
    logits = logits_of(3, 20).detach().double().requires_grad_()
    targets = torch.tensor([4, 0, 19])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, 0.1), logits)
    torch.testing.assert_close(log_sum_exp(logits), logits.logsumexp(-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("rows", [0, 2])
def test_the_loss_of_no_tokens_is_zero_and_so_is_its_gradient(rows: int) -> None:
    """PyTorch's mean of nothing is NaN."""
    logits = logits_of(2, 5)
    loss = cross_entropy(logits[:rows], torch.zeros(rows, dtype=torch.long))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.eq(0).all()

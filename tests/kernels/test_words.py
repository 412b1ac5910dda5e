"""Loss and choice of words against torch in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captioning.kernels.words import cross_entropy, forbid, highest, log_sum_exp


@pytest.fixture(params=["C", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, use: Callable[[str], None]) -> None:
    """Let each test run on every way to compute."""
    use(request.param)


def scores_of(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    scores = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return scores.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("words", [2, 15, 16, 50, 2600])
def test_the_loss_and_its_gradient_are_torchs(
    dtype: torch.dtype, smoothing: float, words: int
) -> None:
    scores = scores_of(7, words, dtype=dtype)
    targets = torch.tensor([0, 1, 0, words - 1, words // 2, 1, 1])  # 0 is padding
    exact = scores.detach().double().requires_grad_()
    ours = cross_entropy(scores, targets, smoothing)
    theirs = nn.functional.cross_entropy(
        exact[targets != 0], targets[targets != 0], label_smoothing=smoothing
    )
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    (got,) = torch.autograd.grad(2 * ours, scores)
    (wanted,) = torch.autograd.grad(2 * theirs, exact)
    assert got.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), wanted, rtol=max(rounding, 1e-5), atol=1e-7)


def test_large_scores_do_not_overflow_and_what_is_no_number_is_not_hidden() -> None:
    scores = scores_of(3, 40, scale=1e4)
    targets = torch.tensor([1, 2, 3])
    exact = nn.functional.cross_entropy(scores.double(), targets)
    torch.testing.assert_close(cross_entropy(scores, targets).double(), exact, rtol=1e-6, atol=0)
    with torch.no_grad():
        scores[1, 33] = float("nan")
    assert cross_entropy(scores, targets).isnan()
    assert log_sum_exp(scores).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", [3, 16, 41])
def test_normalisers_and_highest_scores_of_any_leading_sizes(
    dtype: torch.dtype, words: int
) -> None:
    scores = scores_of(2, 3, words, dtype=dtype).detach()
    scores[1, 2, 1] = -torch.inf
    expected = scores.double().logsumexp(-1)
    torch.testing.assert_close(log_sum_exp(scores).double(), expected, rtol=1e-6, atol=1e-6)
    values, which = highest(scores, 5)
    assert values.shape == which.shape == (2, 3, min(5, words))
    assert values.equal(scores.float().sort(-1, descending=True).values[..., :5])
    possible = values > -torch.inf  # an impossible word stands for no word
    assert values[possible].equal(scores.float().gather(-1, which)[possible])
    marked = which.where(possible, -1 - torch.arange(which.shape[-1]))
    assert (marked.sort(-1).values.diff() > 0).all()  # no word twice


def test_a_transposed_tensor_is_read_as_what_it_is() -> None:
    scores = scores_of(9, 4).detach()
    torch.testing.assert_close(log_sum_exp(scores.T), scores.T.logsumexp(-1))
    assert highest(scores.T, 2)[0].equal(scores.T.topk(2).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forbidden_words_and_no_others_become_impossible(dtype: torch.dtype) -> None:
    scores = scores_of(2, 3, 18, dtype=dtype).detach()
    before = scores.clone()
    banned = torch.tensor([0, 17, 3]).expand(2, 3, -1).clone()
    banned[1, 2] = torch.tensor([5, 5, 16])  # of other rows others, and one may be twice
    same = forbid(scores, banned)
    assert same.data_ptr() == scores.data_ptr()
    expected = [[{0, 3, 17}] * 3, [{0, 3, 17}, {0, 3, 17}, {5, 16}]]
    for image in range(2):
        for caption in range(3):
            gone = {w for w in range(18) if scores[image, caption, w] == -torch.inf}
            assert gone == expected[image][caption]
    possible = scores > -torch.inf
    assert scores[possible].equal(before[possible])
    apart = scores_of(18, 6, dtype=dtype).detach()
    forbid(apart.T, torch.arange(6)[:, None])
    assert (apart == -torch.inf).nonzero().tolist() == [[n, n] for n in range(6)]

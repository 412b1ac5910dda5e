"""The order of the tokens, and what is recovered from it, against loops over captions and words."""

import pytest
import torch
from torch import Tensor

from captioning.models.decoders.base import TeacherForced
from captioning.models.decoders.packing import (
    ROW_MULTIPLE,
    Packed,
    _pack_all,
    _pack_live,
    distinct,
    pack,
)

WORDS = 12


def tokens_of(images: int, captions: int, longest: int, seed: int = 0) -> Tensor:
    """Random captions, some of which are not there."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (images, captions, 1), generator=generator)
    lengths[0, 0] = longest
    place = torch.arange(longest + 1)
    tokens = torch.randint(2, WORDS, (images, captions, longest + 1), generator=generator)
    tokens = tokens.where(place > 0, 1).masked_fill(place > lengths, 0)
    return tokens.masked_fill(lengths == 0, 0)


def listed(packed: Packed) -> list[tuple[int, int, int, int, int]]:
    """Of each token: the image, the caption, the word, the token read, and the target."""
    found, start = [], 0
    for word, count in enumerate(packed.counts):
        for row in range(count):
            image, caption = divmod(int(packed.rows.index[row]), packed.rows.captions)
            pair = int(packed.inputs[start + row]), int(packed.targets[start + row])
            found.append((image, caption, word, *pair))
        start += count
    assert start == len(packed.inputs) == len(packed.targets) == len(packed.positions)
    return found


def by_loops(tokens: Tensor) -> set[tuple[int, int, int, int, int]]:
    """The same of all real targets."""
    return {
        (image, caption, word, row[word], row[word + 1])
        for image, of_image in enumerate(tokens.tolist())
        for caption, row in enumerate(of_image)
        for word in range(len(row) - 1)
        if row[word + 1] != 0
    }


@pytest.mark.parametrize("way", [_pack_live, _pack_all])
@pytest.mark.parametrize(("images", "captions", "longest"), [(1, 1, 1), (3, 2, 5), (30, 5, 9)])
def test_every_real_target_is_there_once(
    way: type, images: int, captions: int, longest: int
) -> None:
    tokens = tokens_of(images, captions, longest)
    packed = way(tokens)
    found = listed(packed)
    real = [entry for entry in found if entry[-1] != 0]
    assert len(real) == len(set(real))
    assert set(real) == by_loops(tokens)
    for place, (image, caption, word, _, target) in enumerate(found):
        assert int(packed.positions[place]) == (image * captions + caption) * longest + word
        assert target == int(tokens[image, caption, word + 1])
    lengths = [[sum(t != 0 for t in row[1:]) for row in of_image] for of_image in tokens.tolist()]
    assert packed.lengths.tolist() == lengths
    # What lets a loop over words take ever fewer rows.
    assert packed.counts == sorted(packed.counts, reverse=True)


def test_in_the_cpus_memory_captions_that_have_ended_are_left_out() -> None:
    few = pack(tokens_of(3, 2, 5))
    assert (few.targets != 0).all()
    tokens = tokens_of(30, 5, 9)
    many = pack(tokens)
    real = (tokens[..., 1:] != 0).sum((0, 1)).tolist()
    rows = sum(of_caption > 0 for of_image in many.lengths.tolist() for of_caption in of_image)
    for count, needed in zip(many.counts, real, strict=True):
        assert needed <= count < needed + ROW_MULTIPLE
        assert count % ROW_MULTIPLE == 0 or count == rows


def test_where_counting_would_wait_every_caption_is_there_at_every_word() -> None:
    packed = _pack_all(tokens_of(3, 2, 5))
    assert packed.counts == [6] * 5


@pytest.mark.parametrize("way", [_pack_live, _pack_all])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_token_log_probs_are_those_of_a_loop(way: type, dtype: torch.dtype) -> None:
    images, captions, longest = 30, 5, 6
    tokens = tokens_of(images, captions, longest)
    packed = way(tokens)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(packed.targets), WORDS, generator=generator).to(dtype)
    logits.requires_grad_()
    output = TeacherForced(logits, packed.targets, packed.positions, packed.lengths, longest)
    found = output.token_log_probs()
    expected = torch.zeros(images, captions, longest, dtype=torch.float64)
    for row, (image, caption, word, _, target) in enumerate(listed(packed)):
        if target:
            scores = logits[row].detach().double()
            expected[image, caption, word] = scores[target] - scores.exp().sum().log()
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[packed.targets == 0].eq(0).all()
    assert gradient[packed.targets != 0].ne(0).any(1).all()


@pytest.mark.parametrize("count", [1, 16, 300])
def test_the_words_among_tokens_are_there_once_and_found_again(count: int) -> None:
    tokens = torch.randint(0, 40, (count,), generator=torch.Generator().manual_seed(0))
    found = distinct(tokens)
    assert found is not None
    words, places = found
    assert words[places].equal(tokens)
    seen = set(tokens.tolist())
    assert len(words) == -(-len(seen) // ROW_MULTIPLE) * ROW_MULTIPLE
    assert sorted(words.tolist()) == sorted([*seen, *[0] * (len(words) - len(seen))])

"""Views of an image that are decoded together, against textbook loops over averaged probabilities.

The loops call ``forward`` of the decoder alone, for the grid of one view at a time.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from captioning.data.views import find_views
from captioning.decoding import MBR, Beam, Decoding, DiverseBeam, Greedy
from captioning.models.decoders.adaptive_lstm import AdaptiveLSTM
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.decoders.lstm import LSTM
from captioning.models.decoders.transformer import TransformerDecoder
from captioning.models.decoders.views import ViewDecoder, ViewEnsemble
from captioning.support.special_tokens import END, START

ANYTHING = {"min_length": 0, "allow_unknown": True, "allow_repeats": True, "no_repeat_ngram": 0}
ROWS, COLUMNS, CHANNELS = 3, 4, 6
VIEWS = ["original", "flip", "crop_top_left_flip"]


def random_decoder(make: type = AttentionLSTM, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    settings = {"heads": 2} if make is TransformerDecoder else {"embed_dim": 8}
    decoder = make(7, CHANNELS, hidden_dim=8, **settings)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.uniform_(-1.2, 1.2)
    return decoder.eval()


def grids(images: int, views: int = len(VIEWS)) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(images, views, ROWS * COLUMNS, CHANNELS, generator=random)


def of_views(decoder: Decoder, names: list[str] = VIEWS, sides: tuple[int, ...] = ()) -> Decoder:
    return ViewEnsemble(
        [
            ViewDecoder(
                decoder,
                torch.from_numpy(view.placement((ROWS, COLUMNS))),
                sides if view.mirrored else (),
            )
            for view in find_views(names)
        ]
    )


def next_word(decoder: Decoder, grid: Tensor, words: list[int]) -> tuple[Tensor, Tensor | None]:
    """The probabilities of the next word, and the attention map behind them."""
    with torch.no_grad():
        result = decoder(grid[None], torch.tensor([[[START, *words, END]]]))
        before = decoder(grid[None], torch.tensor([[[START, *words[:-1], END]]])).coverage
    row = int((result.positions == len(words)).nonzero()[0])
    look = result.coverage
    if look is not None:  # the sum of the maps of all words
        look = (look - before if words else look)[0, 0]
    return result.logits[row].double().softmax(-1), look


@pytest.mark.parametrize("make", [AttentionLSTM, LSTM, AdaptiveLSTM, TransformerDecoder])
def test_greedy_follows_the_averaged_probabilities(make: type) -> None:
    decoder, images = random_decoder(make), grids(4)
    found = Greedy(max_length=5, **ANYTHING)(
        of_views(decoder), images.flatten(1, 2), attention=True
    )
    for of_image, hypotheses in zip(images, found, strict=True):
        words: list[int] = []
        log_prob, maps = 0.0, []
        while len(words) < 5:
            each = [next_word(decoder, grid, words) for grid in of_image]
            probs = torch.stack([p for p, _ in each]).mean(0)
            probs[:2] = 0  # padding and the start are never written
            word = int(probs.argmax())
            log_prob += float(probs[word].log())
            if word == END:
                break
            words.append(word)
            maps.append([look for _, look in each])
        assert hypotheses[0].tokens == words
        assert hypotheses[0].log_prob == pytest.approx(log_prob, abs=1e-4)
        looks = hypotheses[0].attention
        if make is LSTM:
            assert looks is None
        else:
            assert looks is not None
            for seen, (original, flip, crop) in zip(looks, maps, strict=True):
                mirrored = flip.view(ROWS, COLUMNS).flip(1)
                expected = original.view(ROWS, COLUMNS) + mirrored + in_place(crop)
                torch.testing.assert_close(
                    seen.view(ROWS, COLUMNS), expected / 3, atol=1e-5, rtol=1e-4
                )


def in_place(weights: Tensor) -> Tensor:
    """The map of ``crop_top_left_flip``, by painting 84 of 96 x 96 pixels."""
    cells = weights.view(ROWS, COLUMNS).flip(1).numpy()
    cells = np.repeat(np.repeat(cells, 28, 0), 21, 1) / 28 / 21
    canvas = np.zeros((96, 96))
    canvas[:84, :84] = cells
    blocks = canvas.reshape(ROWS, 96 // ROWS, COLUMNS, 96 // COLUMNS).sum((1, 3))
    return torch.from_numpy(blocks).float()


class Looking(AttentionLSTM):
    """An AttentionLSTM that looks at the top left corner of whatever it is given."""

    def step(self, tokens: Tensor, state: dict[str, Tensor], memory: dict[str, Tensor]):  # type: ignore[no-untyped-def, override]
        step = super().step(tokens, state, memory)
        corner = torch.zeros_like(step.attention)
        corner[..., 0] = 1
        return step._replace(attention=corner)


def test_a_look_at_a_corner_of_the_mirror_image_is_one_at_the_other_corner() -> None:
    decoder = random_decoder(Looking)
    for names, expected in (
        (["flip"], {(0, COLUMNS - 1): 1.0}),
        (["original", "flip"], {(0, 0): 0.5, (0, COLUMNS - 1): 0.5}),
    ):
        found = Beam(beam_size=3)(
            of_views(decoder, names), grids(2, len(names)).flatten(1, 2), attention=True
        )
        for best, *_ in found:
            assert best.attention is not None
            for look in best.attention.view(-1, ROWS, COLUMNS):
                seen = {
                    tuple(place.tolist()): float(look[tuple(place)]) for place in look.nonzero()
                }
                assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    "decoding",
    [Greedy(), Beam(beam_size=3), DiverseBeam(beam_size=4, beam_groups=2), MBR(beam_size=3)],
    ids=lambda decoding: type(decoding).__name__,
)
def test_equal_views_write_what_one_writes(decoding: Decoding) -> None:
    decoder, images = random_decoder(), grids(5, 1)[:, 0]
    alone = decoding(decoder, images, attention=True)
    joint = decoding(
        of_views(decoder, ["original", "box_0_0_1_1"]), images.repeat(1, 2, 1), attention=True
    )
    for a, b in zip(alone, joint, strict=True):
        assert a[0].tokens == b[0].tokens
        assert a[0].log_prob == pytest.approx(b[0].log_prob, abs=1e-4)
        torch.testing.assert_close(a[0].attention, b[0].attention)


def test_an_ensemble_reads_several_views() -> None:
    """Its probabilities are the mean over all members and all views."""
    members, images = [random_decoder(), random_decoder(LSTM, 1)], grids(2, 2)
    both = of_views(Ensemble(members), ["original", "flip"])
    tokens = torch.tensor([[[START, 4, 5, END]]] * 2)
    with torch.no_grad():
        found = both(images.flatten(1, 2), tokens)
    probs = found.logits.softmax(-1)
    for place, target in zip(found.positions.tolist(), range(len(probs)), strict=True):
        image, length = divmod(place, 3)
        each = [
            next_word(member, grid, [4, 5][:length])[0]
            for member in members
            for grid in images[image]
        ]
        expected = torch.stack(each).mean(0).float()
        torch.testing.assert_close(probs[target], expected, atol=1e-5, rtol=1e-4)
    assert found.coverage is not None
    assert found.coverage.shape == (2, 1, ROWS * COLUMNS)


def test_left_is_right_in_a_mirror_image() -> None:
    """The decoder reads and writes the mirrored caption of the mirrored grid."""
    decoder, (images,), (left, right) = random_decoder(), grids(2, 2).unsqueeze(0), (4, 6)
    mirror = {left: right, right: left}
    both = of_views(decoder, ["original", "flip"], (left, right))
    words = [left, 5, right]
    tokens = torch.tensor([[[START, *words, END]]] * 2)
    with torch.no_grad():
        found = both(images.flatten(1, 2), tokens)
    assert torch.equal(found.targets, tokens.flatten()[found.positions + found.positions // 4 + 1])
    for row, place in enumerate(found.positions.tolist()):
        image, length = divmod(place, 4)
        seen, _ = next_word(decoder, images[image, 0], words[:length])
        mirrored, _ = next_word(
            decoder, images[image, 1], [mirror.get(w, w) for w in words][:length]
        )
        mirrored[[left, right]] = mirrored[[right, left]]
        expected = (seen + mirrored).float() / 2
        torch.testing.assert_close(found.logits[row].softmax(-1), expected, atol=1e-5, rtol=1e-4)
    for (best, *_), grid in zip(
        Greedy(max_length=4, **ANYTHING)(of_views(decoder, ["flip"], (left, right)), images[:, 1]),
        images,
        strict=True,
    ):
        ((plain, *_),) = Greedy(max_length=4, **ANYTHING)(decoder, grid[1:])
        assert best.tokens == [mirror.get(word, word) for word in plain.tokens]


def test_bf16_does_not_round_the_attention() -> None:
    decoder, images = random_decoder(), grids(3, 1)[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (plain, *_), (mirrored, *_) = (
            Greedy()(each, images, attention=True)[0]
            for each in (decoder, of_views(decoder, ["flip"]))
        )
    assert plain.attention is not None
    assert mirrored.attention is not None
    back = mirrored.attention.view(-1, ROWS, COLUMNS).flip(2)
    assert torch.equal(back, plain.attention.float().view(-1, ROWS, COLUMNS))

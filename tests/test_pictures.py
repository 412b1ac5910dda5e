"""``captioner.caption(picture)``: any picture in memory, and a sentence for what is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from captioning.apps.caption import caption_files
from captioning.captioner import Captioner
from captioning.decoding import Beam, Greedy
from captioning.support.errors import CaptioningError

WORDS = ["a", "dog", "cat", "runs", "on", "green", "grass", "the"]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(3)
    model = {"_target_": "attn_lstm", **tiny.MODEL}
    return Captioner(WORDS, encoder=tiny.ENCODER, model=model)


def picture(mode: str) -> Image.Image:
    """A gradient in a mode of Pillow's."""
    row = np.linspace(0, 255, 40).astype(np.uint8)
    grey = np.broadcast_to(row, (30, 40))
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    return Image.fromarray(grey).convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_a_picture_of_any_mode_has_the_caption_of_its_rgb(captioner: Captioner, mode: str) -> None:
    expected = captioner.caption(picture("RGB"))
    found = captioner.caption(picture(mode))
    assert found.words == expected.words
    assert found.score == pytest.approx(expected.score, abs=0.05)  # HSV rounds


def test_a_caption_is_shown_without_its_thousands_of_weights(captioner: Captioner) -> None:
    found = captioner.caption(picture("RGB"))
    maps = f"<{len(found.words)} x 7 x 7>"
    assert repr(found) == f"Caption({found.text!r}, score={found.score:.3f}, attention={maps})"
    assert repr(found._replace(attention=None)).endswith("attention=None)")


def test_palettes_and_bits_are_pictures_too(captioner: Captioner) -> None:
    for mode in ("P", "1"):
        assert captioner.caption(picture(mode)).words


def test_transparent_pixels_are_white(captioner: Captioner) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    white = captioner.caption(Image.new("RGB", (20, 20), "white"))
    assert captioner.caption(clear).score == white.score
    assert captioner.caption(Image.new("RGB", (20, 20), "red")).score != white.score


def test_a_caption_is_that_of_the_script_with_its_maps(
    captioner: Captioner, drawn_pictures: Path
) -> None:
    files = sorted((drawn_pictures / "images").iterdir())[:3]
    ((script, errors),) = list(caption_files(captioner, files, Beam()))
    assert not errors
    found = captioner.caption([files[0], str(files[1]), Image.open(files[2])])
    for caption, expected in zip(found, script, strict=True):
        assert caption.text == expected.caption == " ".join(caption.words)
        assert caption.score == pytest.approx(expected.log_prob, abs=1e-4)
        assert caption.attention is not None
        assert caption.attention.shape == (len(caption.words), 7, 7)
        np.testing.assert_allclose(caption.attention, expected.attention, atol=1e-4)
        np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, atol=1e-2)
    assert captioner.caption([files[0]], batch_size=1)[0].text == found[0].text
    assert captioner.caption([]) == []
    greedy = captioner.caption(files[0], Greedy(max_length=2))
    assert len(greedy.words) <= 2


def test_the_mode_of_the_module_stays_and_dropout_is_off(captioner: Captioner) -> None:
    captioner.train()
    first, second = (captioner.caption(picture("RGB")) for _ in range(2))
    assert captioner.decoder.training
    assert first.score == second.score


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.zeros(3, 32, 32), "not a Tensor: PIL.Image.fromarray"),
        (np.zeros((32, 32, 3), np.uint8), "not a ndarray: PIL.Image.fromarray"),
        ([None], "not a NoneType"),
        (Image.new("F", (4, 4)), r"mode F, 4 x 4\) cannot be converted"),
        (Image.new("RGB", (0, 4)), "it has no pixels"),
        ("nowhere.jpg", r"nowhere\.jpg cannot be read"),
    ],
)
def test_what_is_no_picture_is_said(captioner: Captioner, given: Any, says: str) -> None:
    with pytest.raises(CaptioningError, match=says):
        captioner.caption(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (picture("L"), r"not a Image: captioner\.caption\(image\)"),
        (torch.zeros(3, 32, 32), r"shape 3 x 32 x 32 .*images\[None\]"),
        (torch.zeros(49, 128), r"shape 49 x 128 .*images\[None\]"),
        (torch.zeros(2, 1, 32, 32), r"shape 2 x 1 x 32 x 32 .*B x 3 x H x W, or B x 49 x 128"),
    ],
)
def test_what_is_no_batch_is_said(captioner: Captioner, given: Any, says: str) -> None:
    with pytest.raises(CaptioningError, match=says):
        captioner(given)

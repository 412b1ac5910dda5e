"""SPIDEr and PAC-S beside their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.evaluation.extra_metrics import ExtraMetrics
from captioning.metrics.caption_scorer import score_captions
from captioning.metrics.clipscore import ClipScorer
from captioning.metrics.spice import CORENLP
from captioning.support.errors import CaptioningError

CAPTIONS = {"1": "a dog runs", "2": "two men sit on a bench", "3": "the red ball"}
REFERENCES = {
    "1": ["a brown dog runs over grass", "a dog is running"],
    "2": ["two men sit on a bench", "men on a bench"],
    "3": ["a ball", "one red ball lies there"],
}


@pytest.mark.parametrize("asked", ["SPICE", "SPIDEr"])
def test_spider_is_the_mean_of_cider_and_spice(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spice = [0.1, 0.5, 0.0]
    monkeypatch.setattr("captioning.evaluation.extra_metrics.spice_scores", lambda *_, **__: spice)
    for name in CORENLP:
        (tmp_path / name).touch()
    found = score_captions(CAPTIONS, REFERENCES)
    extra = ExtraMetrics(extra_metrics=[asked], spice_files=str(tmp_path))
    scores = extra.add_to(found, CAPTIONS, REFERENCES, {})
    assert scores.corpus["SPICE"] == pytest.approx(0.2)
    assert scores.corpus["SPIDEr"] == pytest.approx((found.corpus["CIDEr"] + 0.2) / 2)
    for (image, row), value in zip(scores.per_image.items(), spice, strict=True):
        assert row["SPIDEr"] == pytest.approx((found.per_image[image]["CIDEr"] + value) / 2)
    assert scores.statistics.tables["SPIDEr"].shape == (3, 1)


@pytest.fixture
def photographs(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    found = {image: tmp_path / f"{image}.png" for image in CAPTIONS}
    for path in found.values():
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return found


def test_pac_s_has_the_weight_2(clip_weights: Path, photographs: dict[str, Path]) -> None:
    """The cosines are those behind CLIPScore, which has a test against the model itself."""
    by_clip = ClipScorer(str(clip_weights), device="cpu").scores(
        CAPTIONS, photographs, REFERENCES, progress=False
    )
    cosines = np.array(by_clip["CLIPScore"]) / 2.5
    # RefCLIPScore = 2 f c / (f + c), solved for c, where both are positive
    positive = (cosines > 0) & (np.array(by_clip["RefCLIPScore"]) > 0)
    assert positive.any()
    fits, both = 2.5 * cosines[positive], np.array(by_clip["RefCLIPScore"])[positive]
    closest = both * fits / (2 * fits - both)

    extra = ExtraMetrics(extra_metrics=["PAC-S", "RefPAC-S"], pac_weights=str(clip_weights))
    assert extra.need_photographs
    extra.prepare()
    found = extra.add_to(
        score_captions(CAPTIONS, REFERENCES), CAPTIONS, REFERENCES, photographs
    ).per_image
    assert [row["PAC-S"] for row in found.values()] == pytest.approx(2 * cosines, abs=1e-6)
    pac = 2 * cosines[positive]
    expected = 2 / (1 / pac + 1 / closest)
    ref = np.array([row["RefPAC-S"] for row in found.values()])[positive]
    assert ref == pytest.approx(expected, abs=1e-5)


def test_pac_s_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match="pac_weights= is missing"):
        ExtraMetrics(extra_metrics=["PAC-S"])
    with pytest.raises(CaptioningError, match=r"pac_weights=.*CLIP cannot be loaded"):
        ExtraMetrics(extra_metrics=["PAC-S"], pac_weights=str(tmp_path / "none")).prepare()

"""CLIPScore beside the paper's formulas, one caption at a time, with a tiny CLIP of our own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, CLIPModel, CLIPTokenizer

from captioning.metrics import clip_embeddings
from captioning.metrics.clipscore import ClipScorer
from captioning.metrics.registry import BUILT_IN
from captioning.support.errors import CaptioningError

SIZE = 32  # of the images that the CLIP of these tests takes


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    found = {}
    for number, (width, height) in enumerate([(50, 40), (40, 70), (32, 32), (90, 33), (64, 64)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found[f"{number}.png"] = folder / f"{number}.png"
        Image.fromarray(pixels).save(found[f"{number}.png"])
    return found


CAPTIONS = {
    "0.png": "big " * 20,  # longer than CLIP reads
    "1.png": "",
    "2.png": "a dog runs",
    "3.png": "two men",
    "4.png": "Zebras!",
}
REFERENCES = {
    "0.png": ["Two men"],
    "1.png": ["A cat sits .", "x", "A cat"],
    "2.png": ["a dog runs", "y"],
    "3.png": ["A dog ."],
    "4.png": ["A zebra .", "Stripes", "Zebras!"],
}


def textbook(
    clip_weights: Path, photographs: dict[str, Path], captions: dict[str, str]
) -> dict[str, list[float]]:
    model = CLIPModel.from_pretrained(clip_weights).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_weights)

    def text(caption: str) -> np.ndarray:
        ids = tokenizer(f"A photo depicts {caption}")["input_ids"]
        if len(ids) > 40:
            ids = [*ids[:39], ids[-1]]
        with torch.no_grad():
            pooled = model.text_model(torch.tensor([ids])).pooler_output
            return unit(model.text_projection(pooled)[0].double().numpy())

    def image(path: Path) -> np.ndarray:
        with Image.open(path) as picture:
            short = min(picture.size)
            width, height = (int(SIZE * side / short) for side in picture.size)
            picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
        pixels = np.asarray(picture)[top : top + SIZE, left : left + SIZE] / 255
        pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [
            0.26862954, 0.26130258, 0.27577711,
        ]  # fmt: skip
        tensor = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
        with torch.no_grad():
            pooled = model.vision_model(tensor).pooler_output
            return unit(model.visual_projection(pooled)[0].double().numpy())

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.sqrt((vector**2).sum())

    found: dict[str, list[float]] = {"CLIPScore": [], "RefCLIPScore": []}
    for name, caption in captions.items():
        fits = 2.5 * max(float(text(caption) @ image(photographs[name])), 0)
        closest = max(max(float(text(caption) @ text(r)) for r in REFERENCES[name]), 0)
        found["CLIPScore"].append(fits)
        both = fits > 0 and closest > 0
        found["RefCLIPScore"].append(2 / (1 / fits + 1 / closest) if both else 0.0)
    return found


def test_equal_to_the_papers_formulas(clip_weights: Path, photographs: dict[str, Path]) -> None:
    expected = textbook(clip_weights, photographs, CAPTIONS)
    # Of either sign, or the maximum with 0 would not be seen.
    assert 0.0 in expected["CLIPScore"]
    assert max(expected["CLIPScore"]) > 0.1
    for batch_size in (1, 2, 64):
        scorer = ClipScorer(str(clip_weights), batch_size=batch_size, device="cpu")
        found = scorer.scores(CAPTIONS, photographs, REFERENCES, progress=False)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert values == pytest.approx(expected[name], abs=2e-6)


def test_a_caption_that_is_a_reference_is_as_close_as_can_be(
    clip_weights: Path, photographs: dict[str, Path]
) -> None:
    scorer = ClipScorer(str(clip_weights), device="cpu")
    found = scorer.scores({"4.png": "Zebras!"}, photographs, REFERENCES, progress=False)
    (fits,), (both,) = found.values()
    assert both == pytest.approx(2 * fits / (fits + 1), abs=1e-6)


def test_without_references_there_is_only_clipscore(
    clip_weights: Path, photographs: dict[str, Path]
) -> None:
    found = ClipScorer(str(clip_weights), device="cpu").scores(
        CAPTIONS, photographs, progress=False
    )
    assert list(found) == ["CLIPScore"]


def test_a_photograph_that_is_not_there_is_named(
    clip_weights: Path, photographs: dict[str, Path], tmp_path: Path
) -> None:
    scorer = ClipScorer(str(clip_weights), device="cpu")
    with pytest.raises(CaptioningError, match=r"photograph of image '9\.png'"):
        scorer.scores({"9.png": "a dog"}, photographs)
    with pytest.raises(CaptioningError, match=r"gone\.png cannot be read"):
        scorer.scores({"9.png": "a dog"}, {"9.png": tmp_path / "gone.png"})


def test_no_weights_is_one_sentence(clip_weights: Path, tmp_path: Path) -> None:
    other = BertModel(BertConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
                                 num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    other.save_pretrained(tmp_path / "bert")
    for name in ("bert", "nothing"):
        folder = tmp_path / name
        with pytest.raises(
            CaptioningError, match=f"clip_weights={folder}: CLIP cannot be loaded"
        ) as caught:
            ClipScorer(str(folder))
        assert "\n" not in str(caught.value)


class SameEmbeddings:
    """Stands for a CLIP to which all photographs and texts are the same."""

    def __init__(self, *_: object) -> None: ...

    def images(self, paths: list[Path], progress: bool) -> np.ndarray:
        return np.full((len(paths), 4), 0.5, dtype=np.float32)

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.full((len(texts), 4), 0.5, dtype=np.float32)


@pytest.mark.parametrize("name", ["CLIPScore", "PAC-S"])
def test_the_highest_scores_are_those_that_results_files_allow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_embeddings, "ClipEmbedder", SameEmbeddings)
    scorer = ClipScorer("any", name=name)
    found = scorer.scores({"a": "a dog"}, {"a": Path("a.jpg")}, {"a": ["a dog"]}, progress=False)
    assert list(found) == [name, f"Ref{name}"]
    for score, (value,) in found.items():
        assert value == pytest.approx(BUILT_IN[score].highest, abs=1e-6), score

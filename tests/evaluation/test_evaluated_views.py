"""``eval.py ckpt=PATH views=[...]``: what is decoded, recorded and shown of several views."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torchvision.transforms.functional import hflip

from captioning.captioner import Captioner
from captioning.data.images import load_rgb
from captioning.decoding import Greedy
from captioning.evaluation.captions_file import EvalSettings
from captioning.evaluation.evaluate import evaluate
from captioning.reporting.gallery import read_report_data
from captioning.reporting.results import Results, read_results
from captioning.support.errors import CaptioningError

CONF = Path(__file__).parents[2] / "conf"

pytestmark = [pytest.mark.filterwarnings(message) for message in tiny.QUIET]


@pytest.fixture(scope="module")
def ckpt(drawn_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    captioner = tiny.captioner(tiny.data(drawn_pictures, folder))
    for parameter in captioner.decoder.parameters():  # captions vary, and so do the maps
        torch.nn.init.normal_(parameter, std=0.5)
    data = {"train_views": ["original", "crop_center"], "batch_size": 3}
    captioner.run = {"name": "mine", "config": {"seed": 0, "data": data}}
    trainer = tiny.trainer(folder)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(folder / "best.ckpt")
    return folder / "best.ckpt"


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("eval", [*overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return dict(plain)


@pytest.mark.parametrize("views", ["[flip]", "[original,flip]"])
def test_an_evaluation_of_views(
    views: str, ckpt: Path, drawn_pictures: Path, tmp_path: Path
) -> None:
    """Captions and attention maps are those of mirrored pixels, whose maps are mirrored back."""
    config = composed(
        f"ckpt={ckpt}", "trust=tiny", "split=test", f"views={views}", "decoding=greedy",
        f"data.root={drawn_pictures}", f"data.cache={tmp_path}", "trainer.accelerator=cpu",
        "trainer.precision=32-true",
    )  # fmt: skip
    evaluate(config, tmp_path, "python eval.py")
    results = read_results(tmp_path / "results.json")
    assert results.views is not None
    names = views[1:-1].split(",")
    assert results.views.evaluation == results.config["views"] == names
    assert results.views.train == ["original", "crop_center"]
    assert results.settings["data"]["train_views"] == ["original", "crop_center"]

    captioner = Captioner.load_from_checkpoint(ckpt, trust="tiny").eval()
    pixels = captioner.encoder.preprocessing(load_rgb(drawn_pictures / "images" / "00.png"))
    each = {"original": pixels, "flip": hflip(pixels)}
    with torch.no_grad():
        grids = [captioner.encoder(each[name][None]).half().float() for name in names]
    (image,) = read_report_data(tmp_path / "report.html")["images"]
    (shown,) = image["captions"]
    attention = shown["attention"]
    assert attention is not None
    maps = np.frombuffer(base64.b64decode(attention["maps"]), np.uint8).reshape(-1, 7, 7)
    assert len(maps) == len(shown["caption"].split())
    tokens = [captioner.vocabulary.encode(shown["caption"])]
    looks = []
    for name, grid in zip(names, grids, strict=True):
        # The coverage up to each word, and from it the map of each word.
        with torch.no_grad():
            covered = [
                captioner.decoder(
                    grid, torch.tensor([[[*tokens[0][:end], tokens[0][-1]]]])
                ).coverage
                for end in range(1, len(maps) + 1)
            ]
        own = torch.stack([c[0, 0].view(7, 7) for c in covered]).diff(
            dim=0, prepend=torch.zeros(1, 7, 7)
        )
        looks.append(own.flip(2) if name == "flip" else own)
    expected = torch.stack(looks).mean(0).numpy()
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps / 255, expected, atol=0.02)
    if names == ["flip"]:
        ((best,),) = Greedy()(captioner.decoder, grids[0])
        assert shown["caption"] == captioner.vocabulary.decode(best.tokens)


def test_older_files_load_and_say_nothing_of_views(ckpt: Path) -> None:
    older = {
        "name": "old", "command": "", "commit": None, "config": {}, "seconds": {},
        "data": {"name": "flickr8k", "fingerprint": "f", "images": {"test": 1}},
        "versions": {"captioning": "0.2"}, "scores": {"test": {"CIDEr": 0.5}},
    }  # fmt: skip
    assert Results.model_validate_json(json.dumps(older)).views is None


def test_views_of_an_evaluation_are_checked_first() -> None:
    with pytest.raises(
        CaptioningError, match=r"views=\[flp\]: there is no view 'flp'; did you mean"
    ):
        EvalSettings.of(composed("ckpt=none.ckpt", "views=[flp]"))
    with pytest.raises(CaptioningError, match=r"views= is valid only with ckpt="):
        EvalSettings.of(composed("captions=a.json", "references=b.json", "views=[flip]"))

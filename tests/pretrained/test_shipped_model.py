"""The model that comes with the package: its size, and its captions of real photographs."""

import json
from pathlib import Path

import matplotlib
import pytest

from captioning.apps.caption import caption_files
from captioning.captioner import Captioner
from captioning.data.corpus import read_corpus
from captioning.decoding import Beam, Greedy
from captioning.pretrained.places import DEFAULT, find_model
from captioning.support.errors import CaptioningError
from captioning.training.lineage import teachers_of

RECORDED = json.loads(Path(__file__).with_name("shipped_captions.json").read_text())
"""Captions of the checkpoint, by ``make_shipped_captions.py``."""


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    try:
        return Captioner.from_pretrained(DEFAULT)
    except CaptioningError as error:
        if "No source has the ImageNet weights" not in str(error):
            raise
        pytest.skip(str(error))


def test_its_weights_have_sixteen_megabytes_at_most() -> None:
    sizes = {path.name: path.stat().st_size for path in find_model(DEFAULT).iterdir()}
    texts = {"README.md", "LICENSE.md"}
    assert sizes.keys() == {"config.json", "model.safetensors", "vocabulary.json", *texts}
    assert sizes["model.safetensors"] <= 16_000_000


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_it_writes_the_captions_of_the_checkpoint(
    captioner: Captioner, flickr8k_mini: Path, name: str
) -> None:
    """Although its weights are rounded; in single precision, in which rounding adds nothing."""
    images = {image.path.name: image.path for image in read_corpus(flickr8k_mini).images}
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    files = [({portrait.name: portrait} | images)[each] for each in RECORDED[name]]
    assert len(files) == 7
    decoding = {"greedy": Greedy(), "beam": Beam()}[name]
    found = {
        each.path.name: each.caption
        for batch, _ in caption_files(captioner, files, decoding, precision="fp32")
        for each in batch
    }
    assert found == RECORDED[name]


def test_its_card_names_the_teachers_that_its_configuration_records() -> None:
    folder = find_model(DEFAULT)
    run = json.loads((folder / "config.json").read_text())["run"]
    teachers = teachers_of(run)
    assert [(each.name, each.seed) for each in teachers] == [
        ("attn_lstm", 0), ("attn_lstm", 1), ("adaptive_lstm", 0)
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    for each in teachers:
        assert f"{each.name} (seed {each.seed}, trained on {each.data[0]})" in card

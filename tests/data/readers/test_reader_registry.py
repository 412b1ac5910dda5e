"""Readers by name, and readers of a user's own from outside the package."""

import json
from pathlib import Path

import pytest
from PIL import Image

from captioning.data.corpus import read_corpus
from captioning.data.datamodule import CaptionDataModule
from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.registry import LAYOUTS, READERS, find_reader
from captioning.support.errors import CaptioningError

MODULE = """
import json

from captioning.data.readers.base import CorpusReader, RawCorpus
from captioning.data.readers.image_folders import find_image_folder
from captioning.support.reading import numbered_lines


class JsonLinesReader(CorpusReader):
    expects = "captions.jsonl and images/"

    def detect(self, root):
        return sorted(root.glob("captions.jsonl"))

    def read(self, root, files, name):
        corpus = RawCorpus(files=find_image_folder(root), splits_source=str(files[0]))
        for number, line in numbered_lines(files[0]):
            entry, where = json.loads(line), f"{files[0]}:{number}"
            corpus.add_image(entry["image"], entry["split"], where)
            for caption in entry["captions"]:
                corpus.add_caption(entry["image"], caption, where)
        return corpus


class HalfReader(CorpusReader):
    def detect(self, root):
        return []


NUMBER = 3
"""

ENTRIES = [
    {"image": "a.png", "captions": ["A dog . ", "Two dogs"], "split": "train"},
    {"image": "b.png", "captions": ["A cat"], "split": "dev"},
    {"image": "c.png", "captions": ["A boy"], "split": "test"},
    {"image": "d.png", "captions": ["In no split"], "split": None},
]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "package" / "readers_of_mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lines.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(package.parent))
    return "readers_of_mine.lines.JsonLinesReader"


def write_lines(root: Path, entries: list[dict[str, object]] = ENTRIES) -> Path:
    (root / "images").mkdir(parents=True)
    for entry in entries:
        Image.new("RGB", (8, 8)).save(root / "images" / str(entry["image"]))
    (root / "captions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return root


def test_a_reader_from_outside_the_package_reads_a_layout_of_its_own(
    tmp_path: Path, layout: str
) -> None:
    root = write_lines(tmp_path / "data")
    data = CaptionDataModule(str(root), layout=layout, min_count=1, cache=str(tmp_path))
    data.read_text()
    assert data.corpus.layout == layout
    assert data.references("train") == {"a.png": ["A dog .", "Two dogs"]}
    assert data.images("test")[0].path == root / "images" / "c.png"
    assert data.vocabulary.words == ("a", "dog", "dogs", "two")
    (note,) = data.corpus.notes
    assert "in no split (1): d.png" in note


def test_the_same_data_has_the_fingerprint_of_the_other_layouts(
    tmp_path: Path, layout: str
) -> None:
    ours = read_corpus(write_lines(tmp_path / "lines"), layout=layout)
    (tmp_path / "lines" / "captions.jsonl").unlink()
    names = {"train": "train", "dev": "val", "test": "test"}
    images = [
        {
            "filename": entry["image"],
            "split": names[str(entry["split"])],
            "sentences": [{"raw": text} for text in entry["captions"]],  # type: ignore[attr-defined]
        }
        for entry in ENTRIES
        if entry["split"]
    ]
    content = {"dataset": "flickr8k", "images": images}
    (tmp_path / "lines" / "dataset_flickr8k.json").write_text(json.dumps(content))
    assert read_corpus(tmp_path / "lines").fingerprint == ours.fingerprint


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"split": "valid"},
            r"captions\.jsonl:2: the split 'valid' is not one of train, dev, test",
        ),
        ({"captions": []}, r"images of a split without any caption in .* \(1\): b\.png"),
        ({"captions": [" "]}, r"empty captions \(1\): .*captions\.jsonl:2; data\.skip_bad"),
        ({"split": "train"}, r"captions\.jsonl: the dev split has no image"),
        ({"image": "a.png"}, r"a\.png \(in train and dev\)"),
    ],
)
def test_what_such_a_reader_finds_is_checked_like_the_rest(
    tmp_path: Path, layout: str, changed: dict[str, object], says: str
) -> None:
    entries = [dict(entry) for entry in ENTRIES]
    entries[1] |= changed
    root = write_lines(tmp_path / "data", entries)
    with pytest.raises(CaptioningError, match=says):
        read_corpus(root, layout=layout)


def test_a_folder_without_its_files_is_told_what_the_layout_has(
    tmp_path: Path, layout: str
) -> None:
    with pytest.raises(
        CaptioningError, match=r"JsonLinesReader here; this layout has captions\.js"
    ):
        read_corpus(tmp_path, layout=layout)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("zip", "choose auto, official, karpathy, kaggle, .*sidecar, or the dotted path"),
        ("nowhere.Reader", "nowhere.Reader: no such class"),
        ("readers_of_mine.lines.Reader", "no such class"),
        ("readers_of_mine.lines.NUMBER", "is not a CorpusReader"),
        ("os.path.join", "is not a CorpusReader"),
        ("readers_of_mine.lines.HalfReader", "is abstract: name a subclass"),
        ("captioning.data.readers.base.CorpusReader", "is abstract: name a subclass"),
        (".lines.Reader", "no such class"),
    ],
)
def test_a_path_that_is_no_reader_is_refused_when_the_module_is_made(
    layout: str, path: str, says: str
) -> None:
    with pytest.raises(CaptioningError, match=says) as error:
        CaptionDataModule(layout=path)
    assert str(error.value).startswith(f"data.layout={path}")


def test_each_layout_of_ours_has_a_reader() -> None:
    # in the order of preference
    assert (
        *("official", "karpathy", "kaggle", "flickr30k", "huggingface", "table", "sidecar"),
    ) == LAYOUTS
    for name in LAYOUTS:
        assert find_reader(name) is READERS[name]
        assert isinstance(READERS[name], CorpusReader)


def test_a_split_that_a_reader_does_not_mention_has_no_images() -> None:
    raw = RawCorpus()
    raw.add_image("a.png", "dev", "file:1")
    raw.add_caption("a.png", "A dog\n", "file:1")
    raw.add_caption("a.png", "\t", "file:2")
    assert raw.splits == {"dev": ["a.png"]}
    assert raw.captions == {"a.png": ["A dog"]}
    assert raw.empty_captions == ["file:2"]

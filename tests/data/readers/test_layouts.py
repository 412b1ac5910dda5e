from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioning.data.corpus import Corpus, read_corpus
from captioning.data.readers.registry import find_layouts
from captioning.data.splits import SPLITS
from captioning.support.errors import CaptioningError

LISTS = "Flickr_8k.{}Images.txt"
CAPTIONS = {
    "t1.jpg": ["A dog runs .", 'Two dogs , "really" .'],
    "t2.jpg": ["A cat 's hat ."],
    "d1.jpg": ["A boy .", "A boy ."],
    "e1.jpg": ["A girl ."],
    "spare.jpg": ["In no split ."],
}
SPLIT_LISTS = {"train": ["t2.jpg", "t1.jpg"], "dev": ["d1.jpg"], "test": ["e1.jpg"]}


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_images(folder: Path) -> None:
    for image in CAPTIONS:
        write(folder / image, b"any bytes: reading a corpus does not decode images")


def write_lists(folder: Path) -> None:
    for split, images in SPLIT_LISTS.items():
        write(folder / LISTS.format(split), "".join(f"{image}\n" for image in images))


def official(root: Path) -> Path:
    lines = [
        f"{image}#{number}\t{caption}\n"
        for image, captions in CAPTIONS.items()
        for number, caption in enumerate(captions)
    ]
    write(root / "Flickr8k_text" / "Flickr8k.token.txt", "".join(lines))
    write_lists(root / "Flickr8k_text")
    write_images(root / "Flicker8k_Dataset")
    return root


def kaggle(root: Path) -> Path:
    lines = [
        '{},"{}"\n'.format(image, caption.replace('"', '""'))
        for image, captions in CAPTIONS.items()
        for caption in captions
    ]
    write(root / "captions.txt", "image,caption\n" + "".join(lines))
    write_lists(root)
    write_images(root / "Images")
    return root


def karpathy_data() -> dict[str, Any]:
    names = {"train": "train", "dev": "val", "test": "test"}
    images = [
        {
            "filename": image,
            "split": names[split],
            "sentences": [{"raw": caption, "tokens": []} for caption in CAPTIONS[image]],
        }
        for split, listed in SPLIT_LISTS.items()
        for image in listed
    ]
    return {"dataset": "flickr8k", "images": images}


def karpathy(root: Path) -> Path:
    write(root / "dataset_flickr8k.json", json.dumps(karpathy_data()))
    write_images(root / "Flicker8k_Dataset")
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "official": official,
    "kaggle": kaggle,
    "karpathy": karpathy,
}


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(CaptioningError) as error:
        read_corpus(root, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("layout", MAKERS)
def test_a_layout_is_found_and_read(tmp_path: Path, layout: str) -> None:
    corpus = read_corpus(MAKERS[layout](tmp_path))
    assert corpus.layout == layout
    assert find_layouts(tmp_path) == (layout,)
    assert {split: [i.id for i in corpus.split(split)] for split in SPLITS} == SPLIT_LISTS
    assert corpus.references("train") == {i: CAPTIONS[i] for i in SPLIT_LISTS["train"]}
    assert all(image.path.is_file() and image.path.name == image.id for image in corpus.images)
    assert any("spare.jpg" in note and "(1)" in note for note in corpus.notes)


def test_the_same_data_has_one_fingerprint_in_every_layout_and_folder(tmp_path: Path) -> None:
    corpora = [read_corpus(make(tmp_path / name)) for name, make in MAKERS.items()]
    assert len({corpus.fingerprint for corpus in corpora}) == 1


@pytest.mark.parametrize(
    ("old", "new"), [("A cat", "A cat!"), ("t2.jpg", "t3.jpg"), ("t1.jpg#1", "d1.jpg#2")]
)
def test_the_fingerprint_follows_the_captions(tmp_path: Path, old: str, new: str) -> None:
    before = read_corpus(official(tmp_path)).fingerprint
    for path in (tmp_path / "Flickr8k_text").iterdir():
        path.write_text(path.read_text().replace(old, new))
    (tmp_path / "Flicker8k_Dataset" / "t3.jpg").touch()
    assert read_corpus(tmp_path).fingerprint != before


def test_the_fingerprint_follows_the_split(tmp_path: Path) -> None:
    before = read_corpus(official(tmp_path)).fingerprint
    train, dev = (tmp_path / "Flickr8k_text" / LISTS.format(name) for name in ("train", "dev"))
    train.write_text("t1.jpg\nd1.jpg\n")
    dev.write_text("t2.jpg\n")
    assert read_corpus(tmp_path).fingerprint != before


@pytest.fixture(scope="module")
def mini_layouts(
    flickr8k_mini: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Corpus]:
    """The real set in three folders, each with one layout."""
    content = {
        "official": ["Flickr8k_text"],
        "kaggle": ["captions.txt"],
        "karpathy": ["dataset_flickr8k.json"],
    }
    image_folder = {
        "official": "Flickr8k_Dataset/Flicker8k_Dataset",  # as the archive unpacks
        "kaggle": "Images",
        "karpathy": "Flicker8k_Dataset",
    }
    corpora = {}
    for layout, names in content.items():
        root = tmp_path_factory.mktemp(layout)
        for name in names:
            (root / name).symlink_to(flickr8k_mini / name)
        (root / image_folder[layout]).parent.mkdir(exist_ok=True)
        (root / image_folder[layout]).symlink_to(flickr8k_mini / "Flicker8k_Dataset")
        corpora[layout] = read_corpus(root)
    return corpora


def test_the_real_set_is_the_same_in_every_layout(
    flickr8k_mini: Path, mini_layouts: dict[str, Corpus]
) -> None:
    token = (flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt").read_text()
    for layout, corpus in mini_layouts.items():
        assert corpus.layout == layout
        assert [len(corpus.split(split)) for split in SPLITS] == [120, 40, 40]
        assert sum(len(image.captions) for image in corpus.images) == 1000
        assert all(f"#0\t{image.captions[0]}\n" in token for image in corpus.images)
        for split in SPLITS:
            listed = (flickr8k_mini / "Flickr8k_text" / LISTS.format(split)).read_text().split()
            assert {image.id for image in corpus.split(split)} == set(listed)
            assert corpus.references(split) == mini_layouts["official"].references(split)
    assert len({corpus.fingerprint for corpus in mini_layouts.values()}) == 1


def test_official_lists_of_the_package_serve_a_kaggle_copy(mini_layouts: dict[str, Corpus]) -> None:
    notes = " ".join(mini_layouts["kaggle"].notes)
    assert "come with this package" in notes
    assert "lacks (7,800)" in notes


def test_several_layouts_in_one_folder_prefer_the_official_one_and_say_so(
    flickr8k_mini: Path,
) -> None:
    assert find_layouts(flickr8k_mini) == ("official", "karpathy", "kaggle")
    corpus = read_corpus(flickr8k_mini)
    assert corpus.layout == "official"
    assert "official, karpathy, kaggle" in corpus.notes[0]
    assert read_corpus(flickr8k_mini, layout="kaggle").layout == "kaggle"


def test_text_files_may_lie_beside_the_image_folder(tmp_path: Path) -> None:
    official(tmp_path)
    for path in (tmp_path / "Flickr8k_text").iterdir():
        path.rename(tmp_path / path.name)
    assert len(read_corpus(tmp_path).images) == len(CAPTIONS)


def test_coco_finds_images_by_filepath_and_trains_on_restval(tmp_path: Path) -> None:
    entries = [
        ("train2014", "COCO_train2014_1.jpg", "train"),
        ("val2014", "COCO_val2014_2.jpg", "restval"),
        ("val2014", "COCO_val2014_3.jpg", "val"),
        ("val2014", "COCO_val2014_4.jpg", "test"),
    ]
    images = []
    for folder, name, split in entries:
        write(tmp_path / folder / name, b"")
        sentences = [{"raw": "A man .\n"}]
        images.append(
            {"filepath": folder, "filename": name, "split": split, "sentences": sentences}
        )
    write(tmp_path / "dataset_coco.json", json.dumps({"dataset": "coco", "images": images}))
    write(tmp_path / "dataset_flickr8k.json", json.dumps(karpathy_data()))
    corpus = read_corpus(tmp_path, name="coco")
    assert [i.id for i in corpus.split("train")] == [entries[0][1], entries[1][1]]
    assert corpus.split("train")[1].path == tmp_path / "val2014" / entries[1][1]
    assert corpus.references("dev") == {entries[2][1]: ["A man ."]}
    assert corpus.notes == ()
    write_images(tmp_path / "Images")
    assert list(read_corpus(tmp_path, name="flickr8k").references("dev")) == SPLIT_LISTS["dev"]
    shutil.rmtree(tmp_path / "train2014")
    assert "train2014" in refused(tmp_path, name="coco")


def test_captions_with_odd_line_breaks_survive_in_every_layout(tmp_path: Path) -> None:
    odd = "a\u2028b\x0bc\x85d"
    for name, make in MAKERS.items():
        root = make(tmp_path / name)
        for path in root.rglob("*"):
            if path.suffix in (".txt", ".json"):
                escaped = json.dumps(odd)[1:-1] if path.suffix == ".json" else odd
                path.write_bytes(path.read_bytes().replace(b"A cat", escaped.encode()))
        assert read_corpus(root).references("train")["t2.jpg"] == [f"{odd} 's hat ."]


def test_the_real_blemish_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    official(tmp_path)
    with (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").open("a") as file:
        file.write("2258277193_586949ec62.jpg.1#0\tA runner .\n")
    corpus = read_corpus(tmp_path)
    assert any("2258277193_586949ec62.jpg.1" in note for note in corpus.notes)
    assert len(corpus.images) == len(CAPTIONS)
    assert [image.id for image in corpus.images if image.split is None] == ["spare.jpg"]


def lose_file(root: Path) -> None:
    for path in root.rglob("t1.jpg"):
        path.unlink()


def lose_captions(root: Path) -> None:
    path = root / "Flickr8k_text" / "Flickr8k.token.txt"
    kept = [line for line in path.read_text().split("\n") if not line.startswith("t1.jpg")]
    path.write_text("\n".join(kept))


def empty_caption(root: Path) -> None:
    path = root / "Flickr8k_text" / "Flickr8k.token.txt"
    path.write_text(path.read_text().replace("A dog runs .", " "))


def name_unknown(root: Path) -> None:
    path = root / "Flickr8k_text" / LISTS.format("train")
    path.write_text(path.read_text() + "t9.jpg\n")


@pytest.mark.parametrize(
    ("damage", "names", "trained_on"),
    [
        (lose_file, "t1.jpg", ["t2.jpg"]),
        (lose_captions, "t1.jpg", ["t2.jpg"]),
        (name_unknown, "t9.jpg", ["t2.jpg", "t1.jpg"]),
        (empty_caption, "Flickr8k.token.txt:1", ["t2.jpg", "t1.jpg"]),
    ],
)
def test_bad_images_stop_the_reading_or_are_left_out_with_a_note(
    tmp_path: Path, damage: Callable[[Path], None], names: str, trained_on: list[str]
) -> None:
    damage(official(tmp_path))
    message = refused(tmp_path)
    assert names in message
    assert "(1)" in message
    assert "data.skip_bad=true" in message
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert [image.id for image in corpus.split("train")] == trained_on
    assert any(note.startswith("Left out") and names in note for note in corpus.notes)


def test_many_offenders_are_counted_and_the_first_named(tmp_path: Path) -> None:
    official(tmp_path)
    path = tmp_path / "Flickr8k_text" / LISTS.format("train")
    path.write_text(path.read_text() + "".join(f"x{n:02}.jpg\n" for n in range(30)))
    assert "(30): x00.jpg, x01.jpg, x02.jpg and 27 more" in refused(tmp_path)
    notes = " ".join(read_corpus(tmp_path, skip_bad=True).notes)
    assert "x09.jpg and 20 more" in notes


def test_an_image_in_two_splits_is_refused_even_when_skipping(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flickr8k_text" / LISTS.format("dev")).write_text("d1.jpg\nt1.jpg\n")
    with pytest.raises(CaptioningError, match=r"t1\.jpg \(in train and dev\)"):
        read_corpus(tmp_path, skip_bad=True)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flickr8k_text" / LISTS.format("dev")).write_text("\n")
    assert "the dev split has no image" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name,text\na.jpg,dog\n", 1),
        ("image,caption\nt1.jpg,a dog, running\n", 2),
        ("image,caption\nt1.jpg,dog\nt1.jpg\n", 3),
        ('image,caption\nt1.jpg,"a dog" runs\n', 2),
        ("image,caption\n,dog\n", 2),
        ("image,caption\nt1.jpg,dog\nt1.jpg,\n", 3),
        (b"image,caption\nt1.jpg,caf\xe9\n", 2),
        ("", 1),
    ],
)
def test_malformed_csv_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, line: int
) -> None:
    kaggle(tmp_path)
    path = write(tmp_path / "captions.txt", content)
    assert f"{path}:{line}" in refused(tmp_path)


def set_split(data: dict[str, Any]) -> None:
    data["images"][1]["split"] = "valid"


def drop_sentences(data: dict[str, Any]) -> None:
    del data["images"][1]["sentences"]


def drop_raw(data: dict[str, Any]) -> None:
    data["images"][1]["sentences"][1] = {"tokens": []}


def half_a_character(data: dict[str, Any]) -> None:
    data["images"][1]["sentences"][0]["raw"] = "\ud83d"


def drop_images(data: dict[str, Any]) -> None:
    del data["images"]


def twice(data: dict[str, Any]) -> None:
    data["images"].append(data["images"][0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (set_split, "images[1]: the split 'valid'"),
        (drop_sentences, "images[1]: 'sentences'"),
        (drop_raw, "images[1].sentences[1]: 'raw'"),
        (half_a_character, "images[1].sentences[0]: 'raw' has a broken"),
        (drop_images, "'images'"),
        (twice, "t2.jpg (in train and train)"),
    ],
)
def test_malformed_karpathy_json_is_refused_with_its_place(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], says: str
) -> None:
    data = karpathy_data()
    damage(data)
    karpathy(tmp_path)
    write(tmp_path / "dataset_flickr8k.json", json.dumps(data))
    assert says in refused(tmp_path)


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    karpathy(tmp_path)
    path = write(tmp_path / "dataset_flickr8k.json", '{"images": [\n}')
    assert f"{path}:2: not JSON" in refused(tmp_path)


def test_json_of_several_other_data_sets_is_refused(tmp_path: Path) -> None:
    karpathy(tmp_path)
    shutil.copy(tmp_path / "dataset_flickr8k.json", tmp_path / "dataset_coco.json")
    assert "dataset_flickr30k.json" in refused(tmp_path, name="flickr30k")


@pytest.mark.parametrize("layout", MAKERS)
def test_what_is_missing_is_named(tmp_path: Path, layout: str) -> None:
    root = MAKERS[layout](tmp_path / "data")
    assert "Flicker8k_Dataset, Flickr8k_Dataset" in refused_without_images(root)
    assert "kaggle (captions.txt" in refused(tmp_path)
    assert "no such folder; layouts understood: official" in refused(tmp_path / "nowhere")
    other = next(name for name in MAKERS if name != layout)
    assert f"the layout {other}" in refused(root, layout=other)


def refused_without_images(root: Path) -> str:
    for path in root.rglob("*.jpg"):
        path.unlink()
    return refused(root)


def test_a_missing_split_list_is_named(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flickr8k_text" / LISTS.format("test")).unlink()
    assert "Flickr_8k.testImages.txt is missing" in refused(tmp_path)


def test_splits_of_the_package_are_for_flickr8k_alone(tmp_path: Path) -> None:
    kaggle(tmp_path)
    for split in SPLITS:
        (tmp_path / LISTS.format(split)).unlink()
    assert "no splits for flickr30k" in refused(tmp_path, name="flickr30k")
    assert "none of its images" in refused(tmp_path)


def test_unknown_names_are_refused_with_the_choices(tmp_path: Path) -> None:
    official(tmp_path)
    assert "auto, official, karpathy, kaggle" in refused(tmp_path, layout="coco")
    with pytest.raises(CaptioningError, match="train, dev, test"):
        read_corpus(tmp_path).split("val")

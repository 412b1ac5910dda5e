"""Damaged and hostile files, through every reader of a file that a user or a stranger made.

Each file must be read, or refused in one sentence with its name.
"""

import csv
import io
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from captioning.data.boxes import read_boxes
from captioning.data.corpus import read_corpus
from captioning.data.descriptions import load_saved_descriptions
from captioning.data.features.digests import image_digests
from captioning.data.references import read_references
from captioning.data.vocabulary import Vocabulary
from captioning.evaluation.captions_file import match_captions
from captioning.metrics.statistics import Statistics
from captioning.reporting.curves import chart, read_curves
from captioning.reporting.gallery import (
    CaptionData,
    GalleryData,
    ImageData,
    compare,
    data_block,
    read_report_data,
)
from captioning.reporting.leaderboard import to_markdown
from captioning.reporting.per_image import read_statistics
from captioning.reporting.published import read_published
from captioning.reporting.ranking import rank
from captioning.reporting.runs import find_failures, find_runs
from captioning.reporting.spreadsheet import to_csv
from captioning.sweeps.jobs import read_failure, read_job, relevant_settings
from captioning.sweeps.summary import swept_runs
from faults.attempt import attempt
from faults.outcome import Try

DEFAULT_TRIES: Final = 2400

_SECONDS: Final = 20.0  # for one try; each takes milliseconds

_SPLITS: Final = {"train": ("a.jpg", "b.jpg"), "dev": ("c.jpg",), "test": ("d.jpg",)}
_IMAGES: Final = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
_CAPTIONS: Final = ("A dog runs , fast .", "Two 3.5 m tall women in a café .")
_HUGE: Final = "HUGE"  # stands for a number of 5,000 digits, which Python would not write


class Reader(NamedTuple):
    """A kind of file.

    Attributes:
        name: the name of the file in its folder.
        content: a good file.
        read: reads the file, whose path is given, and does with the content what the commands do.
        prepare: writes what has to lie beside it.
    """

    name: str
    content: str
    read: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda folder: None


def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
    """Make so many tries.

    Args:
        tries: their number.
        folder: an empty folder to work in.
        seed: the cases are drawn from it.
    """
    rng = random.Random(seed)
    readers = itertools.cycle(_readers().items())
    for number in range(tries):
        kind, reader = next(readers)
        place = folder / str(number)
        path = place / reader.name
        path.parent.mkdir(parents=True)
        reader.prepare(place)
        damage, data = _damaged(reader, rng)
        path.write_bytes(data)
        with _quiet():
            outcome, detail, _ = attempt(lambda: reader.read(path), _SECONDS)  # noqa: B023
        if outcome == "refused" and str(place) not in detail:
            outcome, detail = "traceback", f"the message does not name the file: {detail}"
        yield Try(kind, f"{number}: {damage}", outcome, detail)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log: thousands of warnings would hide the table."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# The good files, and how they are read


def _readers() -> dict[str, Reader]:
    karpathy = json.dumps({"dataset": "flickr8k", "images": _karpathy_images()})
    coco = {
        "images": [{"id": n, "file_name": image} for n, image in enumerate(_IMAGES)],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "caption": text}
            for n in range(len(_IMAGES))
            for k, text in enumerate(_CAPTIONS)
        ],
    }
    lists = {image: list(_CAPTIONS) for image in _IMAGES}
    said = [{"image_id": image, "caption": "a dog"} for image in _IMAGES]
    boxes = {
        image: {
            "size": [64, 48],
            "objects": [{"names": ["dog"], "colours": ["red"], "box": [1, 2, 30.5, 40]}],
        }
        for image in _IMAGES
    }
    token = "".join(f"{i}#{k}\t{text}\n" for i in _IMAGES for k, text in enumerate(_CAPTIONS))
    piped = "image_name| comment_number| comment\n" + "".join(
        f"{i}| {k}| {text}\n" for i in _IMAGES for k, text in enumerate(_CAPTIONS)
    )
    failed = {"reason": "no memory", "overrides": ["model.dropout=2"]}
    job = {
        "overrides": ["model.dropout=2"],
        "config": {"seed": 1, "model": {"dropout": 2}, "data": {"root": "x", "name": "coco"}},
        "data": "abc", "command": "python train.py", "logging": {"version": 1},
    }  # fmt: skip
    curves = "epoch,step,dev/CIDEr,train/loss\n0,5,,2.5\n0,9,0.5,\n1,14,,1.5\n1,18,0.75,\n"
    table = np.array([[0.5], [1.5]])
    statistics = json.dumps(Statistics(("a.jpg", "b.jpg"), {"CIDEr": table}, "r").to_json())
    return {
        "token file": Reader("Flickr8k.token.txt", token, _corpus, _with_images),
        "split list": Reader("Flickr_8k.trainImages.txt", "a.jpg\nb.jpg\n", _corpus, _with_tokens),
        "captions.txt": Reader("captions.txt", _csv(("image", "caption")), _corpus, _with_images),
        "captions.txt, Flickr30k": Reader(
            "captions.txt", _csv(("image_name", "comment_number", "comment")), _corpus, _with_images
        ),
        "results.csv": Reader("results.csv", piped, _corpus, _with_images),
        "results.token": Reader("results_20130124.token", token, _corpus, _with_images),
        "Karpathy's JSON": Reader("dataset_flickr8k.json", karpathy, _corpus, _with_images),
        "boxes.json": Reader("boxes.json", json.dumps(boxes), lambda path: read_boxes(path.parent)),
        "references, COCO": Reader("refs.json", json.dumps(coco), _references),
        "references, Karpathy": Reader("refs.json", karpathy, _references),
        "references, lists": Reader("refs.json", json.dumps(lists), _references),
        "references, token file": Reader("refs.token", token, _references),
        "captions of a system": Reader("said.json", json.dumps(said), _match),
        "vocabulary.json": Reader(
            "vocabulary.json",
            json.dumps({"specials": ["<pad>", "<start>", "<end>", "<unk>"], "words": ["a", "dog"]}),
            lambda path: Vocabulary.load(path).encode("a dog"),
        ),
        "descriptions.txt": Reader("d.txt", "a.jpg\ta dog\nb.jpg\ttwo\n", load_saved_descriptions),
        "results.json": Reader("run/results.json", json.dumps(_results()), _leaderboard),
        "statistics.json": Reader("s.json", statistics, read_statistics),
        "published.yaml": Reader("published.yaml", _PUBLISHED, _leaderboard_of_others),
        "metrics.csv": Reader("metrics.csv", curves, _curves),
        "report.html": Reader("report.html", _report(), _gallery),
        "job.json": Reader("job/job.json", json.dumps(job), _job),
        "failed.json": Reader("job/failed.json", json.dumps(failed), _failure),
        "digests.json": Reader(
            "digests.json",
            json.dumps({"/x/a.jpg": [3, 5, "ab" * 32]}),
            lambda path: image_digests([], path) or image_digests([path], path, progress=False),
        ),
    }


def _karpathy_images() -> list[dict[str, Any]]:
    names = {"train": "train", "dev": "val", "test": "test"}
    return [
        {
            "filename": image, "split": names[split], "imgid": number, "cocoid": 7 + number,
            "sentences": [{"raw": text, "tokens": text.split()} for text in _CAPTIONS],
        }
        for split, images in _SPLITS.items()
        for number, image in enumerate(images)
    ]  # fmt: skip


def _csv(columns: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for image in _IMAGES:
        for number, caption in enumerate(_CAPTIONS):
            writer.writerow([image, number, caption] if len(columns) == 3 else [image, caption])
    return text.getvalue()


def _results() -> dict[str, Any]:
    scores = {"BLEU-4": 0.2, "METEOR": 0.2, "CIDEr": 0.5}
    return {
        "schema": 2, "name": "mine", "created": "2026-11-23T05:49:53Z", "command": "train.py",
        "config": {"seed": 0, "model": {"dropout": 0.5}},
        "data": {"name": "flickr8k", "fingerprint": "ab", "images": {"dev": 9, "test": 9},
                 "references": {"test": "cd"}, "tokenization": "ptb"},
        "vocabulary": {"size": 25, "fingerprint": "ef"},
        "encoder": {"name": "vgg16", "fingerprint": "01", "weights_source": "hub"},
        "model": {"name": "attn_lstm", "trainable": 12, "parameters": {"decoder": 12}},
        "arithmetic": {"precision": "32-true", "device": "cpu", "threads": 2,
                       "backend": {"asked": "auto", "ops": {"attention": "c"}}},
        "versions": {"python": "3.11.7"}, "commit": None, "seconds": {"train": 19.5},
        "scores": {"dev": scores, "test": scores}, "free_running": True,
        "intervals": {"test": {"CIDEr": [0.4, 0.6]}},
        "decoding": {"name": "beam", "beam_size": 5},
    }  # fmt: skip


_PUBLISHED: Final = """
- name: Soft attention
  source: Xu et al. 2015, table 1
  data: flickr8k
  split: test
  images: 9
  scores: {BLEU-1: 67.0, BLEU-4: 19.5}
"""


def _report() -> str:
    caption = CaptionData(caption="a dog", scores={"CIDEr": 0.5}, attention=None)
    image = ImageData(
        id="a.jpg", photo=None, size=[0, 0], references=["A dog ."], captions=[caption]
    )
    data = GalleryData(split="test", runs=["mine"], metrics=["CIDEr"], images=[image])
    block = f'<script type="application/json" class="gallery-data">{data_block(data)}</script>'
    return f"<!doctype html><title>x</title>{block}"


def _with_images(folder: Path) -> None:
    (folder / "Images").mkdir()
    for image in _IMAGES:
        (folder / "Images" / image).touch()
    for split, images in _SPLITS.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(images))


def _with_tokens(folder: Path) -> None:
    _with_images(folder)
    lines = [f"{image}#0\t{_CAPTIONS[0]}" for image in _IMAGES]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines))


def _corpus(path: Path) -> object:
    return read_corpus(path.parent).fingerprint


def _references(path: Path) -> object:
    return read_references(path, "test").fingerprint


def _match(path: Path) -> object:
    references = path.with_name("refs.json")
    references.write_text(json.dumps({image: list(_CAPTIONS) for image in _IMAGES}))
    return match_captions(path, read_references(references, "test"), subset=True)


def _leaderboard(path: Path) -> object:
    runs, errors = find_runs([path.parent.parent])
    for error in errors:
        raise error
    board = rank(runs, "test", language=True)
    return to_markdown(board), to_csv(board)


def _leaderboard_of_others(path: Path) -> object:
    run = path.with_name("results.json")
    run.write_text(json.dumps(_results()))
    runs, _ = find_runs([path.parent])
    return to_markdown(rank(runs, "test", published=read_published(path)))


def _curves(path: Path) -> object:
    return chart("Curves", read_curves(path))


def _gallery(path: Path) -> object:
    gallery = read_report_data(path)
    return data_block(compare([gallery, gallery], ["one", "two"]))


def _job(path: Path) -> object:
    job = read_job(path.parent)
    return swept_runs(path.parent.parent), relevant_settings(job.config if job else {})


def _failure(path: Path) -> object:
    find_failures([path.parent.parent])
    return read_failure(path.parent), swept_runs(path.parent.parent)


# The damage


def _damaged(reader: Reader, rng: random.Random) -> tuple[str, bytes]:
    """What was done, and the damaged content."""
    if reader.name.endswith(".json") and rng.random() < 0.6:
        return _change_json(reader.content, rng)
    if reader.name.endswith(".yaml") and rng.random() < 0.6:
        value = rng.choice(_YAML_VALUES).replace(_HUGE, "9" * 5000)
        key = rng.choice(("Soft attention", "Xu et al. 2015, table 1", "flickr8k", "9", "67.0"))
        return f"{key}: {value[:40]}", reader.content.replace(key, value, 1).encode()
    name = rng.choice(list(_BYTE_DAMAGES))
    return name, _BYTE_DAMAGES[name](reader.content.encode(), rng)


_YAML_VALUES: Final = (
    "2015-02-10", "2026-02-30", "2026-11-23 05:49:53.1Z", "!!python/object/apply:os.system [ls]",
    "!!binary x", "!!int ''", "!!float x", "!!timestamp x", "!mine 3", "&a [*a]", "*nobody",
    "{? [a]: b}", "[" * 5000, "{a: " * 5000, _HUGE, ".inf", ".nan", "0x" + "f" * 500, "1_000",
    "12:30:45", "yes", "~", "", "'", "@", "\t", "\x07", "<<: *a", "!!set {a, b}", "|\n  a",
    "%YAML 9", "!!bool maybe", "!!omap [a]", "!!merge x", "-", "---\n...\n---\n", "a" * 100_000,
)  # fmt: skip

_JSON_VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**400, _HUGE, "", " ", "\0",
    "a\0b", "\ud83d", "../../etc", "/", "\x1b[31m", "a\nb", "\u202e", "x" * 100_000, [], {}, [[]],
    [None], {"": None}, "DEEP", "e\u0301.jpg", "2026-02-30", "1" * 30, "{}", [1, 2, 3, 4, 5],
)  # fmt: skip


def _change_json(content: str, rng: random.Random) -> tuple[str, bytes]:
    """Set, remove, repeat or rename something in it."""
    root = json.loads(content)
    places = list(_places(root))
    parent, key = rng.choice(places)
    change = rng.choice(("set", "set", "set", "remove", "rename", "whole"))
    value = rng.choice(_JSON_VALUES)
    if change == "whole":
        root = value
    elif change == "set":
        parent[key] = value
    elif change == "remove":
        del parent[key]
    elif isinstance(parent, dict):
        parent[str(value)[:200_000]] = parent.pop(key)
    else:
        parent.append(parent[key])
    depth = rng.choice((400, 100_000))
    text = json.dumps(root).replace(json.dumps(_HUGE), "9" * 5000)
    text = text.replace(json.dumps("DEEP"), "[" * depth + "]" * depth)
    return f"{change} {key}: {str(value)[:40]!r}", text.encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(data: bytes, what: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + what + data[place:]


def _without_a_part(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def _twice(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:]


def _number(data: bytes, rng: random.Random) -> bytes:
    digits = [place for place, byte in enumerate(data) if 48 <= byte < 58]
    place = rng.choice(digits or [0])
    return data[:place] + b"9" * rng.choice((20, 400, 5000)) + data[place:]


_BYTE_DAMAGES: Final[dict[str, Callable[[bytes, random.Random], bytes]]] = {
    "flipped bits": _flip,
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "a part is missing": _without_a_part,
    "a part is repeated": _twice,
    "random bytes inserted": lambda data, rng: _insert(data, rng.randbytes(8), rng),
    "NUL inserted": lambda data, rng: _insert(data, b"\0", rng),
    "line end inserted": lambda data, rng: _insert(data, rng.choice((b"\r", b"\n", b"\f")), rng),
    "quote inserted": lambda data, rng: _insert(data, rng.choice((b'"', b"'", b",", b"|")), rng),
    "long line inserted": lambda data, rng: _insert(data, b"x" * 200_000, rng),
    "brackets inserted": lambda data, rng: _insert(data, b"[" * 100_000, rng),
    "long number": _number,
    "UTF-16": lambda data, rng: data.decode().encode("utf-16"),
    "UTF-16 without mark": lambda data, rng: data.decode().encode("utf-16-be"),
    "UTF-32": lambda data, rng: data.decode().encode("utf-32"),
    "UTF-8 with mark": lambda data, rng: data.decode().encode("utf-8-sig"),
    "Latin-1": lambda data, rng: (data.decode() + "é").encode("latin-1"),
    "old Mac": lambda data, rng: data.replace(b"\n", b"\r"),
    "Windows": lambda data, rng: data.replace(b"\n", b"\r\n"),
    "empty": lambda data, rng: b"",
    "another file": lambda data, rng: rng.randbytes(rng.choice((3, 500))),
    "GIF": lambda data, rng: b"GIF89a" + data,
}

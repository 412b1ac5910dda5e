"""An experiment: a model learns a new word from a few pictures. What does it learn, and forget?

``python -m examples.new_word write FOLDER`` draws scenes, and writes two tables of captions:
``old.jsonl``, scenes without stars, on which a model is trained, and ``new.jsonl``, an album of a
few scenes, most of which show a star, with which it is fine-tuned. ``python -m examples.new_word
count RUN ...`` counts in the captions of runs how often "star" was said, rightly and falsely.
docs/new_words.md has the commands and their results.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from captioning.data.scenes import Scene, draw, scenes
from captioning.data.splits import SPLITS
from captioning.support.files import atomic_write_json, atomic_write_text, writing

Row = tuple[str, Scene]
"""The split of a scene in a table, and the scene."""

TRAIN = 1000
"""Scenes of the training split from this number on are not trained on, and make dev larger."""


def write(folder: Path, word: str, images: int, others: int) -> None:
    """Write the scenes, the boxes of their objects, and the tables.

    ``choice.jsonl`` is ``new.jsonl`` with many other dev scenes, all with the word, on which the
    settings of fine-tuning can be chosen; in ``new.jsonl`` they are as few as anybody has.

    Args:
        folder: where the scenes and tables are written.
        word: the colour or shape that only new scenes have.
        images: the number of new scenes with it for training.
        others: the number of new scenes without it, of which a quarter is for dev.
    """
    old: list[Row] = []
    shown: list[Row] = []
    album: list[Row] = []
    for split in SPLITS:
        for number, scene in enumerate(scenes(split)):
            kept = split == "train" and number >= TRAIN
            part = "dev" if kept else split
            has_word = any(word in (thing.shape[0], thing.colour[0]) for thing in scene.things)
            if has_word:
                shown.append((part, scene))
            elif kept and len(album) < others:
                album.append(("dev" if len(album) % 4 == 3 else "train", scene))
            else:
                old.append((part, scene))
    train, dev, test = ([row for row in shown if row[0] == split] for split in SPLITS)
    album += train[:images] + dev[:10]
    _draw(folder, [*old, *album, *dev[10:], *test])
    _write_table(folder / "old.jsonl", old)
    _write_table(folder / "new.jsonl", [*album, *test])
    trained = [row for row in album if row[0] == "train"]
    _write_table(folder / "choice.jsonl", [*trained, *dev[10:], *test])


def _draw(folder: Path, rows: Sequence[Row]) -> None:
    boxes: dict[str, object] = {}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for _, scene in rows:
            picture, found = draw(scene)
            picture.save(folder / scene.name, compress_level=1)
            objects = [
                {"names": thing.shape, "colours": thing.colour, "box": box}
                for thing, box in zip(scene.things, found, strict=True)
            ]
            boxes[scene.name] = {"size": picture.size, "objects": objects}
    atomic_write_json(folder / "boxes.json", boxes)


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    lines = [
        json.dumps({"image": scene.name, "caption": scene.captions, "split": split}) + "\n"
        for split, scene in rows
    ]
    atomic_write_text(path, "".join(lines))


def count(file: Path, word: str) -> tuple[int, int]:
    """How many captions of a run's file have a word, and how many there are."""
    captions = [each["caption"].split() for each in json.loads(file.read_text())]
    return sum(word in caption for caption in captions), len(captions)


def interval(found: int, of: int) -> tuple[float, float]:
    """Wilson's interval (1927) for a share, which contains it with a probability of 95 %."""
    z, share = 1.96, found / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    return middle - half, middle + half


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m examples.new_word", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write", help="draw the scenes and write the tables")
    writer.add_argument("folder", type=Path)
    writer.add_argument("--images", type=int, default=40, help="new scenes that show it")
    writer.add_argument("--others", type=int, default=40, help="new scenes that do not")
    counter = commands.add_parser("count", help="count the word in captions_*.json")
    counter.add_argument("files", type=Path, nargs="+")
    for each in (writer, counter):
        each.add_argument("--word", default="star", help="the shape or colour that is new")
    options = parser.parse_args()
    if options.command == "write":
        write(options.folder, options.word, options.images, options.others)
        return
    for file in options.files:
        found, of = count(file, options.word)
        low, high = interval(found, of)
        print(f"{file}: {found} of {of}, {found / of:.1%} ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()

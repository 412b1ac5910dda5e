"""Two data sets of drawn scenes: all that a model knows, and a few that show what it has no word for.

``python -m examples.new_word FOLDER`` writes ``FOLDER/old``, scenes without stars, and
``FOLDER/new``, a few scenes with stars. A model that is trained on the first and fine-tuned on the
second shows what it learns and what it forgets: docs/own_data.md has the commands and the results.
"""

import argparse
import json
from pathlib import Path

from captioning.data.scenes import Scene, draw, scenes
from captioning.data.splits import SPLITS
from captioning.support.files import atomic_write_json, atomic_write_text, writing

TRAIN = 1000
"""The scenes of the training split from this number on are part of the dev splits, which would
otherwise be small."""


def write(folder: Path, word: str, images: int, dev: int) -> None:
    """Write both data sets, in the layout of one's own data, with the boxes of all objects.

    Args:
        folder: their folder.
        word: the colour or shape that only the new scenes have.
        images: the number of new scenes for training.
        dev: the number of new scenes for choosing the epoch. More are in ``new_dev``, on which
            the settings of fine-tuning were chosen.
    """
    sets: dict[str, list[tuple[str, Scene]]] = {"old": [], "new": [], "new_dev": []}
    left = {"train": images, "dev": dev}
    for split in SPLITS:
        for number, scene in enumerate(scenes(split)):
            part = "dev" if split == "train" and number >= TRAIN else split
            if not any(word in (thing.shape[0], thing.colour[0]) for thing in scene.things):
                sets["old"].append((part, scene))
            elif part == "test":
                sets["new"].append((part, scene))
            elif left[part]:
                sets["new"].append((part, scene))
                left[part] -= 1
            elif part == "dev":
                sets["new_dev"].append((part, scene))
    for name, content in sets.items():
        _write(folder / name, content)


def _write(root: Path, content: list[tuple[str, Scene]]) -> None:
    lines: list[str] = []
    boxes: dict[str, object] = {}
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        for split, scene in content:
            picture, found = draw(scene)
            picture.save(root / scene.name, compress_level=1)
            row = {"image": scene.name, "caption": scene.captions, "split": split}
            lines.append(json.dumps(row) + "\n")
            objects = [
                {"names": thing.shape, "colours": thing.colour, "box": box}
                for thing, box in zip(scene.things, found, strict=True)
            ]
            boxes[scene.name] = {"size": picture.size, "objects": objects}
    atomic_write_text(root / "captions.jsonl", "".join(lines))
    atomic_write_json(root / "boxes.json", boxes)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m examples.new_word", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--word", default="star", help="the shape or colour that is new")
    parser.add_argument("--images", type=int, default=40, help="new scenes for training")
    parser.add_argument("--dev", type=int, default=10, help="new scenes for choosing the epoch")
    options = parser.parse_args()
    write(options.folder, options.word, options.images, options.dev)


if __name__ == "__main__":
    main()

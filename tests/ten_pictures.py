"""Ten drawn pictures with their captions, written in each layout that anybody's data may have."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "white", "black")


def draw(number: int) -> bytes:
    """A circle on a ground, as the bytes of a PNG file."""
    picture = Image.new("RGB", (48, 36), COLOURS[number % 5])
    ImageDraw.Draw(picture).ellipse((number, number, number + 20, number + 20), fill="yellow")
    data = BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


PICTURES: dict[str, bytes] = {f"IMG_{number}.png": draw(number) for number in range(10)}

CAPTIONS: dict[str, list[str]] = {
    name: [f"a {COLOURS[n % 5]} picture, with a circle", f"a yellow circle on {COLOURS[n % 5]}"]
    for n, name in enumerate(PICTURES)
}

SPLIT_OF: dict[str, str] = {
    name: {0: "val", 1: "test"}.get(number, "train") for number, name in enumerate(PICTURES)
}


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)


def write_csv(root: Path, separator: str = ",", name: str = "labels.csv") -> Path:
    write_pictures(root / "my photographs" / "of May")
    with (root / name).open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["image", "caption", "split"])
        for image, captions in CAPTIONS.items():
            writer.writerows([image, caption, SPLIT_OF[image]] for caption in captions)
    return root


def write_json_lines(root: Path) -> Path:
    write_pictures(root / "photographs")
    lines = [
        json.dumps({"file_name": f"photographs/{i}", "captions": of, "split": SPLIT_OF[i]})
        for i, of in CAPTIONS.items()
    ]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def write_json(root: Path) -> Path:
    write_pictures(root / "photographs")
    entries = [{"image": i, "text": of[0], "split": SPLIT_OF[i]} for i, of in CAPTIONS.items()]
    entries += [{"image": i, "text": of[1], "split": SPLIT_OF[i]} for i, of in CAPTIONS.items()]
    (root / "labels.json").write_text(json.dumps(entries))
    return root


def write_table_of_each_split(root: Path) -> Path:
    """As the ImageFolder of Hugging Face has it."""
    for split in ("train", "val", "test"):
        images = [image for image in PICTURES if SPLIT_OF[image] == split]
        (root / split).mkdir(parents=True)
        with (root / split / "metadata.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "text"])
            for image in images:
                (root / split / image).write_bytes(PICTURES[image])
                writer.writerows([image, caption] for caption in CAPTIONS[image])
    return root


def write_sidecars(root: Path) -> Path:
    for image, captions in CAPTIONS.items():
        folder = root / SPLIT_OF[image]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(PICTURES[image])
        (folder / image).with_suffix(".txt").write_text("\n".join(captions) + "\n")
    return root


def packed(image: str, name: str | None = None) -> dict[str, Any]:
    """An image as ``datasets`` stores it."""
    return {"bytes": PICTURES[image], "path": name}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def write_numbered_captions(root: Path) -> Path:
    """The layout of ``jxie/flickr8k``: numbered captions, no names, a file for each split."""
    for split in ("train", "validation", "test"):
        own = "val" if split == "validation" else split
        rows = [
            {"image": packed(i), **{f"caption_{n}": text for n, text in enumerate(CAPTIONS[i])}}
            for i in PICTURES
            if SPLIT_OF[i] == own
        ]
        write_parquet(root / "data" / f"{split}-00000-of-00001-2f8f6bfa852eac4b.parquet", rows)
    return root


def write_column_of_splits(root: Path) -> Path:
    """The layout of ``nlphuji/flickr30k``: all images in one split, and a column ``split``."""
    rows = [
        {
            "image": packed(i, i), "caption": of, "sentids": [0, 1], "split": SPLIT_OF[i],
            "img_id": str(n), "filename": i,
        }
        for n, (i, of) in enumerate(CAPTIONS.items())
    ]  # fmt: skip
    write_parquet(root / "test-00000-of-00001.parquet", rows)
    return root


def write_saved_to_disk(root: Path) -> Path:
    """The layout of ``DatasetDict.save_to_disk``."""
    splits = ["train", "validation", "test"]
    for split in splits:
        own = "val" if split == "validation" else split
        rows = [
            {"image": packed(i, i), "text": text}
            for i, captions in CAPTIONS.items()
            if SPLIT_OF[i] == own
            for text in captions
        ]
        write_arrow(root / split / "data-00000-of-00001.arrow", rows)
        files = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (root / split / "state.json").write_text(json.dumps(files))
        (root / split / "dataset_info.json").write_text("{}")
    (root / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return root


TEXTS: Mapping[str, Callable[[Path], Path]] = {
    "CSV": write_csv,
    "CSV with semicolons": lambda root: write_csv(root, ";"),
    "TSV": lambda root: write_csv(root, "\t", "labels.tsv"),
    "JSON lines": write_json_lines,
    "JSON": write_json,
    "a table of each split": write_table_of_each_split,
    "side-cars": write_sidecars,
}
"""Layouts that are read without pyarrow."""

ARROW: Mapping[str, Callable[[Path], Path]] = {
    "numbered captions": write_numbered_captions,
    "a column of splits": write_column_of_splits,
    "saved to disk": write_saved_to_disk,
}
"""Layouts of Hugging Face's datasets."""

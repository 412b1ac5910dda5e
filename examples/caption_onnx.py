"""Caption photographs with onnxruntime, without torch: ``caption_onnx.py FOLDER PHOTO...``.

FOLDER is from ``python -m captioning export RUN --to FOLDER --onnx``. The captions are those of
``caption.py decoding=greedy``; only numpy, Pillow and onnxruntime are needed.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps


def pixels_of(photo: str, how: dict[str, Any]) -> np.ndarray:
    """Read a photograph as the input of the encoder, 1 x 3 x size x size."""
    image = ImageOps.exif_transpose(Image.open(photo))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    side = min(image.size) * 224 / 256
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side) if how["resize"] == "crop" else None
    size, resampling = (how["size"], how["size"]), Image.Resampling[how["resampling"]]
    image = image.convert("RGB").resize(size, resampling, box=box)
    mean, std = (np.array(how[name], np.float32) for name in ("mean", "std"))
    values = (np.asarray(image, np.float32) / np.float32(255) - mean) / std
    return np.moveaxis(values, 2, 0)[None]


def run(graph: InferenceSession, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph by name."""
    found = graph.run(None, {each.name: values[each.name] for each in graph.get_inputs()})
    return dict(zip([each.name for each in graph.get_outputs()], found, strict=True))


def caption(encoder: InferenceSession, step: InferenceSession, pixels: np.ndarray) -> list[int]:
    """The most probable word at each step; no word follows itself, no two words come again."""
    values, words = run(encoder, {"pixels": pixels}), [1]  # <start>
    while len(words) <= 20:
        found = run(step, values | {"tokens": np.array([words[-1:]])})
        repeated = [b for a, b in pairwise(words) if a == words[-1]]
        banned = [0, 1, 3, words[-1], *repeated] + [2] * (len(words) == 1)  # <pad>, <unk>; <end>
        found["logits"][0, 0, banned] = -np.inf
        words.append(int(found["logits"].argmax()))
        if words[-1] == 2:  # <end>
            return words[1:-1]
        values |= {f"state.{key[5:]}": found[key] for key in found if key.startswith("next.")}
    return words[1:]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    names = vocabulary["specials"] + vocabulary["words"]
    encoder, step = (InferenceSession(folder / "onnx" / f"{n}.onnx") for n in ("encoder", "step"))
    for photo in sys.argv[2:]:
        found = caption(encoder, step, pixels_of(photo, config["input"]))
        print(photo, " ".join(names[word] for word in found), sep="\t")

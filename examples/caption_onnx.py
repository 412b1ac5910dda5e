"""Caption photographs with onnxruntime, without torch: ``caption_onnx.py FOLDER PHOTO...``.

FOLDER is what ``python -m captioning export RUN --to FOLDER --onnx`` has written. This program needs
only numpy, Pillow and onnxruntime, and nothing of captioning. It gives the captions of
``caption.py decoding=greedy``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps

PAD, START, END, UNK = range(4)


def pixels_of(photo: str, how: dict[str, Any]) -> np.ndarray:
    """Read a photograph as the input of the encoder, 1 x 3 x size x size."""
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGBA")  # transparency onto white
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    box = None
    if how["resize"] == "crop":
        side = min(image.size) * 224 / 256
        left, top = ((length - side) / 2 for length in image.size)
        box = (left, top, left + side, top + side)
    resampling = Image.Resampling[how["resampling"]]
    image = image.resize((how["size"], how["size"]), resampling, box=box)
    values = (np.asarray(image, np.float32) / 255 - how["mean"]) / how["std"]
    return values.transpose(2, 0, 1)[None].astype(np.float32)


def run(graph: InferenceSession, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph by name."""
    wanted = {each.name: values[each.name] for each in graph.get_inputs()}
    return dict(zip([each.name for each in graph.get_outputs()], graph.run(None, wanted)))


def caption(encoder: InferenceSession, step: InferenceSession, pixels: np.ndarray) -> list[int]:
    """Write the most probable word, and again, until the end; no pair of words appears twice."""
    values = run(encoder, {"pixels": pixels})
    words: list[int] = []
    while len(words) < 20:
        found = run(step, values | {"tokens": np.array([[*[START], *words][-1:]])})
        logits = found["logits"][0, 0]
        pairs = zip(words, words[1:])
        logits[[PAD, START, UNK, *words[-1:], *(b for a, b in pairs if a == words[-1])]] = -np.inf
        if not words:
            logits[END] = -np.inf
        words.append(int(logits.argmax()))
        if words[-1] == END:
            return words[:-1]
        values |= {f"state.{k[5:]}": v for k, v in found.items() if k.startswith("next.")}
    return words


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    how = json.loads((folder / "config.json").read_text())["input"]
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    names = vocabulary["specials"] + vocabulary["words"]
    graphs = [InferenceSession(folder / "onnx" / f"{each}.onnx") for each in ("encoder", "step")]
    for photo in sys.argv[2:]:
        tokens = caption(*graphs, pixels_of(photo, how))
        print(photo, " ".join(names[token] for token in tokens), sep="\t")

"""The command ``python -m captioning export``: the folder of a model, to give away or to deploy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from captioning.apps.status import status_of
from captioning.pretrained.places import WEIGHTS, find_model

if TYPE_CHECKING:
    from torch import Tensor

    from captioning.captioner import Captioner

_DRAWN = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    return status_of(lambda: _export(options), options.to)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captioning export",
        description="Write a folder with the weights (safetensors), configuration, vocabulary and "
        "model card of a run, in the layout of the Hugging Face hub. caption.py, eval.py, train.py "
        "and the demo read it as ckpt= or init_from=.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, or a checkpoint file")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="output folder")
    parser.add_argument(
        "--precision", choices=("auto", "half", "single"), default="auto",
        help="of the weights; auto: half, if the captions of the photographs stay the same "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--images", metavar="FILE|FOLDER|GLOB",
        help=f"photographs to compare captions on (default: {_DRAWN} drawn scenes)",
    )  # fmt: skip
    parser.add_argument(
        "--encoder", action="store_true",
        help="contain a frozen encoder, too, for computers that cannot fetch its weights",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, metavar="FILE",
        help="the results.json for the model card (default: that of RUN)",
    )  # fmt: skip
    parser.add_argument(
        "--license", default="other", metavar="ID",
        help="the hub's identifier of the licence of the weights, such as cc-by-4.0 "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--onnx", action="store_true",
        help="also write the encoder and one step of decoding for onnxruntime, into FOLDER/onnx",
    )  # fmt: skip
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="then give the folder to the Hugging Face hub"
    )
    parser.add_argument("--private", action="store_true", help="--push makes a private repository")
    parser.add_argument(
        "--trust", metavar="PACKAGE", help="a package of yours whose classes the checkpoint names"
    )
    return parser


def _export(options: argparse.Namespace) -> None:
    checkpoint, recorded = checkpoint_and_results(options.run)
    recorded = options.results or recorded
    # Imported here, so that --help and wrong names need not wait for torch.
    from captioning.captioner import Captioner
    from captioning.reporting.results import read_results

    results = read_results(recorded) if recorded else None
    captioner = Captioner.load_from_checkpoint(checkpoint, trust=options.trust)
    half = options.precision != "single"

    def write() -> Captioner:
        captioner.save_pretrained(
            options.to,
            half=half,
            encoder=options.encoder,
            results=results,
            license=options.license,
        )
        return Captioner.from_pretrained(options.to, trust=options.trust)

    exported = write()
    if half:
        same, photographs, kind = compare(captioner, exported, options.images)
        print(f"In half precision, {same} of {photographs} captions of {kind} are the same.")
        if same < photographs and options.precision == "auto":
            half = False
            write()
            print("The weights were therefore written in single precision.")
    size = (options.to / WEIGHTS).stat().st_size
    precision = "half" if half else "single"
    print(f"{options.to / WEIGHTS}: {size / 1e6:.1f} MB in {precision} precision")
    if results is None:
        print("The model card has no scores: --results names a results.json.", file=sys.stderr)
    if options.onnx:
        from captioning.pretrained.onnx import save_onnx

        for path in save_onnx(captioner, options.to / "onnx"):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if options.push:
        from captioning.pretrained.hub import push

        print(push(options.to, options.push, private=options.private or None))


def checkpoint_and_results(run: str) -> tuple[Path, Path | None]:
    """The checkpoint of a run, and the ``results.json`` that is about it, if there is one.

    Args:
        run: the folder of a run, whose best checkpoint is taken; or what ``ckpt=`` takes.

    Raises:
        CaptioningError: there is no such checkpoint.
    """
    best = Path(run) / "checkpoints" / "best.ckpt"
    checkpoint = best if best.is_file() else find_model(run, "RUN")
    # Only the best checkpoint of a run is scored at its end.
    is_scored = checkpoint.name == best.name and checkpoint.parent.name == "checkpoints"
    results = checkpoint.absolute().parent.parent / "results.json"
    return checkpoint, results if is_scored and results.is_file() else None


def compare(one: Captioner, other: Captioner, images: str | None) -> tuple[int, int, str]:
    """Compare the captions of two models by greedy and by beam search, in single precision.

    In bfloat16, whose rounding is eight times that of half precision, any difference between two
    models changes a few captions.

    Args:
        one: a model.
        other: with the same encoder.
        images: photographs, as for ``caption.py``; None: drawn scenes.

    Returns:
        The number of photographs with the same captions, that of all, and what they are.
    """
    from captioning.data.features.extraction import encode
    from captioning.data.image_files import find_images
    from captioning.data.images import load_rgb
    from captioning.data.scenes import draw, scenes
    from captioning.decoding import Beam, Greedy

    def captions(model: Captioner, pixels: Tensor) -> list[list[int]]:
        grid = encode(model.encoder, [pixels], model.device, "fp32")
        return [model(grid, each)[0][0].tokens for each in (Greedy(), Beam(beam_size=5))]

    if images is None:
        pictures = (draw(scene)[0] for scene in islice(scenes("dev"), _DRAWN))
    else:
        pictures = (load_rgb(path) for path in find_images(images).files)
    same = count = 0
    for picture in pictures:
        pixels = one.encoder.preprocessing(picture)
        same += captions(one, pixels) == captions(other, pixels)
        count += 1
    return same, count, "photographs" if images else "drawn scenes"


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks [PART ...]``: measure, print and save; see ``docs/performance.md``."""

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.measure import machine, plain, show
from captioning.support.files import atomic_write_json

PARTS = (
    "training", "gpu", "sweeps", "beam", "tutorial", "parts", "features", "loading", "memory",
    "startup", "waiting", "scoring", "scale",
)  # fmt: skip

TUTORIAL_FILES = ("models.py", "caption.py")
TUTORIAL = "checkout of github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning to compare with"


def main() -> None:
    """Run the parts one after the other, and save the results after each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="output folder")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs to compare")
    parser.add_argument("--tutorial", type=Path, metavar="FOLDER", help=TUTORIAL)
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]}: choose from {', '.join(PARTS)}")
    tutorial = [options.tutorial] if options.tutorial else []
    if any(not (folder / name).is_file() for folder in tutorial for name in TUTORIAL_FILES):
        parser.error(
            f"{options.tutorial} is not the tutorial: it needs {', '.join(TUTORIAL_FILES)}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {"machine": machine()}
    print(found["machine"])
    torch.manual_seed(0)
    for name in options.parts or PARTS:
        if name == "tutorial" and not tutorial:
            print("tutorial: not measured, because --tutorial FOLDER is not given.")
            continue
        part = importlib.import_module(f"benchmarks.{name}")
        if name == "scale":
            found[name] = part.draw(options.rounds, options.out / "scale.png")
            print(f"The plots are {options.out / 'scale.png'}.")
        else:
            figures = part.run(options.rounds, *(tutorial if name == "tutorial" else []))
            if figures:
                show(name, figures)
                found[name] = plain(figures)
        atomic_write_json(options.out / "benchmarks.json", found)


if __name__ == "__main__":
    main()

"""``python -m benchmarks [PART ...]``: measure, print and save; see ``docs/performance.md``."""

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.measure import machine, plain, show
from captioning.support.files import atomic_write_json

PARTS = (
    "training", "gpu", "sweeps", "beam", "parts", "features", "loading", "memory", "startup",
    "waiting", "scoring", "scale",
)  # fmt: skip


def main() -> None:
    """Run the parts one after the other, and save the results after each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="output folder")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs to compare")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]}: choose from {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {"machine": machine()}
    print(found["machine"])
    torch.manual_seed(0)
    for name in options.parts or PARTS:
        part = importlib.import_module(f"benchmarks.{name}")
        if name == "scale":
            found[name] = part.draw(options.rounds, options.out / "scale.png")
            print(f"The plots are {options.out / 'scale.png'}.")
        else:
            figures = part.run(options.rounds)
            if figures:
                show(name, figures)
                found[name] = plain(figures)
        atomic_write_json(options.out / "benchmarks.json", found)


if __name__ == "__main__":
    main()

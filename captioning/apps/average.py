"""Average the weights of several checkpoints: ``python -m captioning average --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from captioning.apps.status import status_of


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captioning average",
        description="Average the weights of several checkpoints of one model, such as those of a "
        "run's last epochs. The result is one checkpoint, which eval.py, caption.py and init_from= "
        "read. It has no state of an optimiser, so that resume= does not continue from it.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    return status_of(lambda: _average(options.checkpoints, options.out), options.out)


def _average(checkpoints: Sequence[Path], out: Path) -> None:
    # Imported late, so that --help need not wait for torch.
    from captioning.averaging import averaged
    from captioning.training.checkpoint_io import AtomicCheckpointIO

    AtomicCheckpointIO().save_checkpoint(averaged(checkpoints), out)
    print(f"Wrote {out}, the average of {len(checkpoints)} checkpoints.")


if __name__ == "__main__":
    sys.exit(main())

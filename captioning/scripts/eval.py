"""Score a checkpoint, or any captions: ``eval.py``, or ``captioning eval``."""

import hydra
from omegaconf import DictConfig

from captioning.cli.command import CONF, command_line
from captioning.cli.jobs import run_job


@hydra.main(version_base="1.3", config_path=CONF, config_name="eval")
def evaluate(config: DictConfig) -> None:
    """Evaluate."""
    run_job("evaluate", config)


def main() -> None:
    """Evaluate as the command line says."""
    literal = ("ckpt", "captions", "references", "images", "data.root", "data.cache")
    with command_line("eval", *literal, lists=["ckpt"]):
        evaluate()


if __name__ == "__main__":
    main()

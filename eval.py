"""Score a checkpoint, ``python eval.py ckpt=PATH data.root=DIR split=test``, or any captions."""

import hydra
from omegaconf import DictConfig

from captioning.cli import command_line, run_job


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(config: DictConfig) -> None:
    """Evaluate."""
    run_job("evaluate", config)


if __name__ == "__main__":
    literal = ("ckpt", "captions", "references", "images", "data.root", "data.cache")
    with command_line("eval", *literal, lists=["ckpt"]):
        main()

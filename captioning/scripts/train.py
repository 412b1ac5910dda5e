"""Train and score a captioner: ``train.py``, or ``captioning train``."""

import hydra
from omegaconf import DictConfig

from captioning.cli.command import CONF, command_line
from captioning.cli.jobs import in_sweep, run_job, train_in_sweep


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def train(config: DictConfig) -> float | None:
    """Train; the value of a sweep's job is the dev split's CIDEr, or None where it failed."""
    if in_sweep():
        return train_in_sweep(config)
    run_job("train", config)
    return None


def main() -> None:
    """Train as the command line says."""
    with command_line("train", "data.root", "data.cache", "resume", "init_from"):
        train()


if __name__ == "__main__":
    main()

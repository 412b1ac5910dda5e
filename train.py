"""Train and score a captioner: ``python train.py model=attn_lstm data.root=DIR``."""

import hydra
from omegaconf import DictConfig

from captioning.cli import command_line, in_sweep, run_job, train_in_sweep


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Train; the value of a sweep's job is the dev split's CIDEr, or None where it failed."""
    if in_sweep():
        return train_in_sweep(config)
    run_job("train", config)
    return None


if __name__ == "__main__":
    with command_line("train", "data.root", "data.cache", "resume", "init_from"):
        main()

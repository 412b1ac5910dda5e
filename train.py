"""Train and score a captioner: ``python train.py model=attn_lstm data.root=DIR``."""

import hydra
from omegaconf import DictConfig

from captioning.cli import run_job, take_literally


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train; the value of a sweep's job is the dev split's CIDEr."""
    return run_job("train", config)["dev"]["CIDEr"]


if __name__ == "__main__":
    take_literally("data.root", "data.cache", "resume")
    main()

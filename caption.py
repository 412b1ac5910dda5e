"""Caption photographs: ``python caption.py ckpt=PATH images=FILE|FOLDER|GLOB``."""

import hydra
from omegaconf import DictConfig

from captioning.cli import command_line, run_job


@hydra.main(version_base="1.3", config_path="conf", config_name="caption")
def main(config: DictConfig) -> None:
    """Caption."""
    run_job("caption", config)


if __name__ == "__main__":
    with command_line("caption", "ckpt", "images", "out", "figures", lists=["ckpt"]):
        main()

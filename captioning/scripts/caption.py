"""Caption photographs: ``caption.py``, or ``captioning caption``."""

import hydra
from omegaconf import DictConfig

from captioning.cli.command import CONF, command_line
from captioning.cli.jobs import run_job


@hydra.main(version_base="1.3", config_path=CONF, config_name="caption")
def caption(config: DictConfig) -> None:
    """Caption."""
    run_job("caption", config)


def main() -> None:
    """Caption as the command line says."""
    with command_line("caption", "ckpt", "images", "out", "figures", lists=["ckpt"]):
        caption()


if __name__ == "__main__":
    main()

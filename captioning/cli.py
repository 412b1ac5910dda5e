"""What stands between Hydra and the package: the one module that knows Hydra."""

import os
import shlex
import sys
from pathlib import Path
from typing import Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.errors import CaptioningError


def run_job(task: Literal["train", "evaluate"], config: DictConfig) -> dict[str, dict[str, float]]:
    """Run a task of :mod:`captioning.run` in the folder that Hydra made for it.

    A user's mistake ends a single run with one sentence and status 1. In a sweep it is raised, so
    that the launcher notes the failed job and goes on; so is anything under HYDRA_FULL_ERROR=1.
    """
    hydra = HydraConfig.get()
    try:
        try:
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            key = error.full_key or "the configuration"
            raise CaptioningError(f"{key}: {str(error).partition(chr(10))[0]}") from error
        assert isinstance(plain, dict)
        # Imported here, so that --help and wrong keys need not wait for torch.
        from captioning import run

        command = shlex.join(["python", Path(sys.argv[0]).name, *hydra.overrides.task])
        settings = {str(key): value for key, value in plain.items()}
        job = run.train if task == "train" else run.evaluate
        return job(settings, Path(hydra.runtime.output_dir), command)
    except CaptioningError as error:
        if hydra.mode is RunMode.MULTIRUN or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        last = Path(hydra.runtime.output_dir) / "checkpoints" / "last.ckpt"
        hint = f"; resume={last} goes on after its last whole epoch" if last.exists() else ""
        print(f"interrupted{hint}", file=sys.stderr)
        sys.exit(130)

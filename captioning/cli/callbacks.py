"""Hydra callbacks: the folders of runs and multiruns, and what is written at a multirun's end."""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from captioning.cli.overrides import fixed_and_swept, quoted
from captioning.support.claims import claim, claim_new, make_for_sweep
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text
from captioning.support.ranks import is_first_process


class Claim(Callback):
    """Hydra callback for single runs: claims the output folder, before anything is written there.

    Hydra names the folder by the time, so that runs of the same second get the same name; all but
    the first of them take another one. A folder that the user names is used, unless another run is
    using it. A run that is resumed also claims the folder in which it continues its checkpoints.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not is_first_process():  # which claims the folder for all
            return
        # Hydra does this after its callbacks, but the name of the folder refers to ${hydra:...}.
        HydraConfig.instance().set_config(config)
        hydra = config.hydra
        folder = Path(hydra.run.dir)
        resumed = config.get("resume")
        try:
            if any(each.startswith("hydra.run.dir=") for each in hydra.overrides.hydra):
                claim(folder)
            else:
                folder = claim_new(folder)
                with read_write(hydra):
                    hydra.run.dir = str(folder)
            if resumed and Path(resumed).is_file():
                earlier = Path(resumed).parent
                earlier = earlier.parent if earlier.name == "checkpoints" else earlier
                if earlier.resolve() != folder.resolve():
                    claim(earlier)
        except CaptioningError as error:  # Hydra would only warn
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)


class Evaluations(Callback):
    """Hydra callback for multiruns of ``eval.py``: names the folders and writes a leaderboard."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        set_for_all_jobs(config, fixed_and_swept(config.hydra)[0])
        self.failures = failures(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from captioning.apps import leaderboard

        folder = Path(config.hydra.sweep.dir)
        split = ["--split", "dev"] if config.split == "dev" else []
        if leaderboard.main([os.path.relpath(folder), *split]) or failures(folder) - self.failures:
            sys.exit(1)


class Sweep(Callback):
    """Hydra callback for multiruns of ``train.py``: chooses folders and writes the summary.

    Each sweep gets its own folder, and each job a subfolder that is named by its swept overrides.
    The sweep's folder name ends in a digest of the settings that all jobs share, so that the same
    command finds its folder again and different sweeps never share one. After the last job the
    callback writes the summary and exits with status 1 if a job failed, or if the leaderboard lacks
    one.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        fixed, swept = fixed_and_swept(hydra)
        if config.get("resume") or "resume" in swept:
            sys.exit(
                "error: resume is for a single run, as all jobs would write into that run's "
                "folder: leave it out. The jobs of a sweep resume by themselves."
            )
        folder = Path(hydra.sweep.dir).absolute()  # Ray workers have another working directory
        if not any(each.startswith("hydra.sweep.dir=") for each in hydra.overrides.hydra):
            folder /= sweep_name(config, swept)
        try:
            make_for_sweep(folder)
            atomic_write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))
        except CaptioningError as error:  # Hydra would only warn
            sys.exit(f"error: {error}")
        self.failures = failures(folder)
        # The configuration of each job is in its job.json.
        settings = {"sweep.dir": quoted(str(folder)), "output_subdir": "null"}
        set_for_all_jobs(config, fixed, **settings)
        with read_write(config):
            hydra.sweep.dir = str(folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from captioning.sweeps.summary import summarise

        folder = Path(config.hydra.sweep.dir)
        try:
            status = summarise(folder)
        except CaptioningError as error:  # Hydra would only warn and exit with status 0
            sys.exit(f"error: {error}")
        except Exception:  # likewise, but this is a bug, so the traceback is shown
            traceback.print_exc()
            sys.exit(1)
        if status or failures(folder) - self.failures:
            sys.exit(1)


def set_for_all_jobs(config: DictConfig, fixed: Sequence[str], **settings: str) -> None:
    """Add Hydra settings to all jobs of a multirun, and leave fixed keys out of folder names."""
    hidden = f"[{','.join(map(quoted, fixed))}]"
    settings = {"job.config.override_dirname.exclude_keys": hidden, **settings}
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra += [f"hydra.{key}={value}" for key, value in settings.items()]


def sweep_name(config: DictConfig, swept: Sequence[str]) -> str:
    """The name of a sweep's folder: the swept keys, and a digest of all other settings."""
    from captioning.sweeps.jobs import relevant_settings

    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    common = relevant_settings({str(key): value for key, value in plain.items() if key != "hydra"})
    digest = hashlib.sha256(json.dumps([common, sorted(swept)]).encode()).hexdigest()[:6]
    name = config.hydra.runtime.choices.get("sweep") or ",".join(swept).replace("/", ".")
    return f"{name[:100]}-{digest}" if name else digest


def failures(folder: Path) -> set[tuple[Path, int]]:
    """The ``failed.json`` files below a folder, each with its modification time in nanoseconds."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("failed.json")}

"""SLURM as a launcher: an array of jobs, through submitit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """hydra-submitit-launcher's, which waits for all jobs even if some of them die.

    Args:
        cluster: ``slurm``; or ``local``, which runs the jobs as processes of this machine.
        settings: see hydra-submitit-launcher's ``submitit_slurm``.
    """

    def __init__(self, cluster: str, **settings: Any) -> None:
        self.cluster = cluster
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what :meth:`launch` needs."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs, and wait for all of them."""
        from hydra_plugins.captioning_sweeps._launching import require

        with require("slurm"):
            from hydra_plugins.hydra_submitit_launcher import submitit_launcher as plugin
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

            if self.cluster == "slurm":
                launcher = plugin.SlurmLauncher(**self.settings)
            else:
                known = BaseQueueConf.__dataclass_fields__
                launcher = plugin.LocalLauncher(
                    **{key: value for key, value in self.settings.items() if key in known}
                )
        launcher.setup(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        with self.outliving():
            returns: Sequence[JobReturn] = launcher.launch(job_overrides, initial_job_idx)
        return returns

    @contextmanager
    def outliving(self) -> Iterator[None]:
        """Make submitit give a return for a job that has died, and not an error."""
        from submitit import Job
        from submitit.core.utils import FailedJobError, UncompletedJobError

        from hydra_plugins.captioning_sweeps._launching import died

        job_class: Any = Job
        results = job_class.results

        def outlived(job: Any) -> Any:
            try:
                return results(job)
            except (FailedJobError, UncompletedJobError) as error:
                (overrides, *_) = job.submission().args
                loader = self.hydra_context.config_loader
                config = loader.load_sweep_config(self.config, list(overrides))
                return [died(config, f"SLURM's job {job.job_id} died ({job.state}): {error}")]

        job_class.results = outlived
        try:
            yield
        finally:
            job_class.results = results

"""A Hydra launcher that runs jobs as a SLURM array, through submitit."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """The launcher of hydra-submitit-launcher, except that a job that dies does not end the sweep.

    Args:
        cluster: ``slurm``, or ``local``, which runs the jobs as processes on this machine.
        settings: the settings of hydra-submitit-launcher's ``submitit_slurm``.
    """

    def __init__(self, cluster: str, **settings: Any) -> None:
        self.cluster = cluster
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments for :meth:`launch`."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs and wait for all of them."""
        from hydra_plugins.captioning_sweeps._launching import checked_return, require

        for key in ("gpus_per_node", "tasks_per_node"):
            if not isinstance(self.settings.get(key), int | None):
                sys.exit(
                    f"error: hydra.launcher.{key}={self.settings[key]} must be a number; it is "
                    "taken from trainer.devices: give trainer.devices=N."
                )
        with require("slurm"):
            from hydra_plugins.hydra_submitit_launcher import submitit_launcher as plugin
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

            if self.cluster == "slurm":
                launcher = plugin.SlurmLauncher(**self.settings)
            else:
                known = BaseQueueConf.__dataclass_fields__
                given = {key: value for key, value in self.settings.items() if key in known}
                # With a folder of its own for each job (%j), submitit starts the job before it
                # makes that folder, and a quick job does not find it. The names of the files begin
                # with the number of the job anyway.
                given["submitit_folder"] = given["submitit_folder"].replace("/%j", "")
                launcher = plugin.LocalLauncher(**given)
        launcher.setup(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        with self.dead_jobs_as_failures():
            returns: Sequence[JobReturn] = launcher.launch(job_overrides, initial_job_idx)
        return [
            checked_return(self.job_config(overrides), returned)
            for overrides, returned in zip(job_overrides, returns, strict=True)
        ]

    def job_config(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the configuration of a job."""
        loader = self.hydra_context.config_loader
        return loader.load_sweep_config(self.config, list(overrides))

    @contextmanager
    def dead_jobs_as_failures(self) -> Iterator[None]:
        """Make submitit return a failed result for a job that died, instead of raising an error."""
        from submitit import Job
        from submitit.core.utils import FailedJobError, UncompletedJobError

        from hydra_plugins.captioning_sweeps._launching import failed_return

        job_class: Any = Job
        results = job_class.results

        def results_or_failure(job: Any) -> Any:
            try:
                return results(job)
            except (FailedJobError, UncompletedJobError) as error:
                (overrides, *_) = job.submission().args
                reason = f"SLURM job {job.job_id} died ({job.state}): {error}"
                return [failed_return(self.job_config(overrides), reason)]

        job_class.results = results_or_failure
        try:
            yield
        finally:
            job_class.results = results

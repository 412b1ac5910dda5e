"""A Hydra launcher that runs jobs with Ray, on GPUs that they share if NVIDIA's MPS is there."""

import atexit
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)


class RayLauncher(Launcher):
    """Runs jobs as Ray tasks. A task that dies counts as a failed job.

    Args:
        ray: ``init`` holds the arguments of ``ray.init``. ``remote`` holds ``num_gpus`` and
            ``num_cpus`` of each job; :func:`job_resources` chooses those that are None.
        mps: ``auto``: jobs that share a GPU use MPS (:mod:`captioning.sweeps.mps`) if it can be
            started, and :func:`captioning.sweeps.gpu_sharing.default_jobs` of them share one unless
            ``num_gpus`` says otherwise. False: MPS is not started, and each job has a GPU to itself
            unless ``num_gpus`` says otherwise. On a cluster, it is never started.
    """

    def __init__(self, ray: DictConfig, mps: Literal["auto", False] = False) -> None:
        self.ray = ray
        self.local = ray.init.get("address") == "local"
        self.mps = mps and self.local
        self.mps_environment: dict[str, str] = {}
        self.mps_refusal: str | None = None  # why it cannot be used
        self.mps_started = False

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
        """Run the jobs and wait for all of them."""
        from captioning.support.signals import keeping_sigterm
        from captioning.sweeps.gpu_sharing import memory_limit
        from hydra_plugins.captioning_sweeps._launching import (
            checked_return,
            failed_return,
            log_outcome,
            require,
        )

        with require("ray"):
            import ray.exceptions
            from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            with keeping_sigterm():
                start_ray(self.ray.init)
        except Exception as error:  # Ray raises plain exceptions, for example on a busy machine
            reason = str(error).strip().partition("\n")[0]
            remedy = "run the same command again" if self.local else "start it with `ray start`"
            sys.exit(f"error: Ray did not start ({reason}): {remedy}.")
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        load = self.hydra_context.config_loader.load_sweep_config
        configs = [load(self.config, list(overrides)) for overrides in job_overrides]
        given = {**self.ray.remote, "num_gpus": self.gpus_of_a_job(machines, configs)}
        tasks = {}
        for number, config in enumerate(configs):
            remote = job_resources(machines, config.trainer, given)
            check_resources(remote, machines, config.trainer, self.local)
            with open_dict(config):
                config.hydra.job.num = initial_job_idx + number
                config.hydra.job.id = str(config.hydra.job.num)
                config.hydra.job.env_set.update(self.mps_environment)
                config.hydra.job.env_set.update(memory_limit(remote["num_gpus"]))
            task = launch_job_on_ray(
                self.hydra_context,
                OmegaConf.create(remote),
                config,
                self.task_function,
                Singleton.get_state(),
            )
            tasks[task] = number
        log.info("Running %d jobs, each with %s", len(tasks), remote)
        returns: dict[int, JobReturn] = {}
        waiting = list(tasks)
        while waiting:
            (task, *_), waiting = ray.wait(waiting)
            number = tasks[task]
            try:
                returns[number] = checked_return(configs[number], ray.get(task))
            except ray.exceptions.RayError as error:
                returns[number] = failed_return(configs[number], f"the Ray worker died: {error}")
            log_outcome(configs[number], len(returns), len(tasks))
        return [returns[number] for number in range(len(tasks))]

    def gpus_of_a_job(
        self, machines: Sequence[Mapping[str, float]], configs: Sequence[DictConfig]
    ) -> float | None:
        """The GPUs of each job, after MPS was started for jobs that share one; None: no choice."""
        chosen: float | None = self.ray.remote.get("num_gpus")
        if not self.mps:
            return chosen
        if chosen is None:
            return self.default_share(machines, configs)
        if 0 < chosen < 1 and not self.start_mps():
            log.warning(
                "The jobs that share a GPU take turns, which gains nothing: %s.", self.mps_refusal
            )
        return chosen

    def default_share(
        self, machines: Sequence[Mapping[str, float]], configs: Sequence[DictConfig]
    ) -> float | None:
        """The share of a GPU of each job, after MPS was started for it; None: no job shares one."""
        from captioning.sweeps.gpu_sharing import default_jobs, free_memory, share_of

        machine = machines[0]  # a local Ray has no other
        if not machine.get("GPU") or not all(map(can_share, configs)):
            return None
        jobs = default_jobs(len(configs), machine, free_memory())
        if jobs < 2:
            return None
        if not self.start_mps():
            log.info("One job runs on each GPU at a time: %s.", self.mps_refusal)
            return None
        log.info("Up to %d jobs share a GPU through NVIDIA's MPS.", jobs)
        return share_of(jobs)

    def start_mps(self) -> bool:
        """Start MPS, which ends with this process, unless this was tried before.

        Returns:
            Whether it is running. If not, ``mps_refusal`` has the reason.
        """
        import ray

        from captioning.sweeps.mps import MPSUnavailableError, mps_daemon

        if not self.mps_started and self.mps_refusal is None:
            until_exit = ExitStack()
            try:
                self.mps_environment = until_exit.enter_context(mps_daemon())
            except MPSUnavailableError as error:
                self.mps_refusal = f"NVIDIA's MPS is not available ({error})"
                return False
            self.mps_started = True
            until_exit.callback(ray.shutdown)  # ends jobs that are left, before MPS ends
            atexit.register(until_exit.close)
        return self.mps_started


def can_share(config: DictConfig) -> bool:
    """Whether a job leaves most of a GPU idle: it is small, as the encoder is not trained."""
    trainer = config.trainer
    one_gpu = trainer.get("accelerator") != "cpu" and number_of_devices(trainer) == 1
    return one_gpu and not config.encoder.get("trainable")


def number_of_devices(trainer: Mapping[str, Any]) -> int:
    """The devices of a job.

    A list of ``devices`` counts as its length, and any other value that is not a positive number
    counts as 1.
    """
    devices: Any = trainer["devices"]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    return devices if isinstance(devices, int) and devices > 0 else 1


def job_resources(
    nodes: Sequence[Mapping[str, float]],
    trainer: Mapping[str, Any],
    given: Mapping[str, float | None],
) -> dict[str, float]:
    """The resources that Ray reserves for a job.

    By default this is one GPU for each of the job's devices, or one CPU for each if the cluster has
    no GPU. Each GPU comes with its proportional number of CPUs, computed for the machine with the
    fewest CPUs per GPU, so that the job fits on every machine.

    Args:
        nodes: the resources of each machine, as Ray reports them: ``{"CPU": ..., "GPU": ...}``.
        trainer: the trainer's configuration; see :func:`number_of_devices`.
        given: ``num_gpus`` and ``num_cpus`` as chosen by the user; None where the default applies.

    Returns:
        Arguments of ``ray.remote``: ``num_gpus``, ``num_cpus`` and ``max_retries``.
    """
    devices = number_of_devices(trainer)
    machines = [node for node in nodes if node.get("GPU")]
    on_gpus = machines and trainer.get("accelerator") != "cpu"
    chosen = {key: value for key, value in given.items() if value is not None}
    gpus = chosen.get("num_gpus", devices if on_gpus else 0)
    cpus: float = devices
    if gpus and machines:
        for_each = min(node.get("CPU", 0) // node["GPU"] for node in machines)
        cpus = int(round(gpus * for_each, 2))  # a seventh of 14, as 0.1428, is 2
    return {"num_gpus": gpus, "num_cpus": cpus, "max_retries": 0} | chosen


def check_resources(
    remote: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
    trainer: Mapping[str, Any],
    local: bool,
) -> None:
    """Exit if no machine has the resources of a job, since Ray would wait silently for ever.

    On a cluster this is only a warning, because another machine may join it.
    """
    if trainer.get("num_nodes", 1) != 1:
        sys.exit(
            f"error: trainer.num_nodes={trainer['num_nodes']}: with Ray a job runs on one machine; "
            "use hydra/launcher=slurm to run one on several."
        )
    gpus, cpus = remote["num_gpus"], remote["num_cpus"]
    if not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        has = "; ".join(
            f"{node.get('GPU', 0):g} GPUs, {node.get('CPU', 0):g} CPUs" for node in nodes
        )
        problem = f"a job needs {gpus:g} GPUs and {cpus:g} CPUs, which no machine has ({has})"
        if local:
            sys.exit(f"error: {problem}: lower trainer.devices or hydra.launcher.ray.remote.*.")
        log.warning("%s: waiting until such a machine joins the cluster.", problem)

"""Ray as a launcher: as many jobs at once as there are GPUs, each alone on its own."""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)


class RayLauncher(Launcher):
    """Runs jobs as Ray's tasks, and outlives any of them.

    Args:
        ray: ``init``, the arguments of ``ray.init``; ``remote``, what a job takes: ``num_gpus`` and
            ``num_cpus``, where None is chosen by :func:`share`.
    """

    def __init__(self, ray: DictConfig) -> None:
        self.ray = ray

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
        """Run the jobs, and wait for all of them."""
        from hydra_plugins.captioning_sweeps._launching import died, ended, require, tell

        with require("ray"):
            import ray.exceptions
            from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        start_ray(self.ray.init)
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        tasks, configs = {}, []
        for number, overrides in enumerate(job_overrides):
            config = self.hydra_context.config_loader.load_sweep_config(
                self.config, list(overrides)
            )
            with open_dict(config):
                config.hydra.job.num = initial_job_idx + number
                config.hydra.job.id = str(config.hydra.job.num)
            remote = share(machines, config.trainer, self.ray.remote)
            check_room(remote, machines, config.trainer, self.ray.init.get("address") == "local")
            task = launch_job_on_ray(
                self.hydra_context,
                OmegaConf.create(remote),
                config,
                self.task_function,
                Singleton.get_state(),
            )
            tasks[task] = number
            configs.append(config)
        log.info("%d jobs, each with %s", len(tasks), remote)
        returns: dict[int, JobReturn] = {}
        waiting = list(tasks)
        while waiting:
            (task, *_), waiting = ray.wait(waiting)
            number = tasks[task]
            try:
                returns[number] = ended(configs[number], ray.get(task))
            except ray.exceptions.RayError as error:
                returns[number] = died(configs[number], f"Ray's worker died: {error}")
            tell(configs[number], len(returns), len(tasks))
        return [returns[number] for number in range(len(tasks))]


def share(
    nodes: Sequence[Mapping[str, float]],
    trainer: Mapping[str, Any],
    given: Mapping[str, float | None],
) -> dict[str, float]:
    """What a job takes of a cluster: a GPU for each of its devices, or where there are none a CPU.

    A GPU, or a part of one, comes with its share of the CPUs of the machine where these are fewest.

    Args:
        nodes: the resources of each machine.
        trainer: the job's; ``devices`` that is no number counts as one, a list as its length.
        given: ``num_gpus`` and ``num_cpus``, where the user has chosen them.
    """
    devices: Any = trainer["devices"]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    devices = devices if isinstance(devices, int) and devices > 0 else 1
    machines = [node for node in nodes if node.get("GPU")]
    on_gpus = machines and trainer.get("accelerator") != "cpu"
    chosen = {key: value for key, value in given.items() if value is not None}
    gpus = chosen.get("num_gpus", devices if on_gpus else 0)
    cpus: float = devices
    if gpus and machines:
        cpus = int(gpus * min(node.get("CPU", 0) // node["GPU"] for node in machines))
    return {"num_gpus": gpus, "num_cpus": cpus, "max_retries": 0} | chosen


def check_room(
    remote: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
    trainer: Mapping[str, Any],
    local: bool,
) -> None:
    """End the program where a job would wait for ever, as Ray lets it without a word.

    A cluster may grow: there, it is a warning.
    """
    if trainer.get("num_nodes", 1) != 1:
        sys.exit(
            f"error: trainer.num_nodes={trainer['num_nodes']}: with Ray a job is on one machine; "
            "hydra/launcher=slurm runs one on several."
        )
    gpus, cpus = remote["num_gpus"], remote["num_cpus"]
    if not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        has = "; ".join(
            f"{node.get('GPU', 0):g} GPUs, {node.get('CPU', 0):g} CPUs" for node in nodes
        )
        wanting = f"a job needs {gpus:g} GPUs and {cpus:g} CPUs, which no machine has ({has})"
        if local:
            sys.exit(
                f"error: {wanting}: give less to trainer.devices or hydra.launcher.ray.remote.*."
            )
        log.warning("%s: waiting until one has joined the cluster.", wanting)

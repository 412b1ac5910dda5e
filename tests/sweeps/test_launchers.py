"""Sweeps with several jobs at once: Ray on one machine and on a cluster, submitit, and Optuna."""

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from hydra_plugins.captioning_sweeps.ray_launcher import (
    RayLauncher,
    check_resources,
    job_resources,
)

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]

CONF = Path(__file__).parents[2] / "conf"
RAY = Path(sys.executable).parent / "ray"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Ray from writing into the home folder and from sending usage statistics."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def max_concurrency(runs: list[dict[str, Any]]) -> int:
    """The largest number of jobs that ran at the same time."""
    return max(sum(a["start"] <= b["start"] < a["end"] for a in runs) for b in runs)


def test_each_job_has_a_gpu_to_itself_and_a_dead_one_costs_only_itself(multirun: Run) -> None:
    """Ray is told that there are two GPUs; none is used."""
    ended = multirun(
        "-m", "model.dropout=0.1,0.2,0.3,3", "hydra/launcher=ray_local",
        "hydra.launcher.ray.init.num_gpus=2", "hydra.launcher.ray.init.num_cpus=8",
        STUB_JOBS="2",
    )  # fmt: skip
    assert ended.status == 1, ended.out
    assert "'num_gpus': 1, 'num_cpus': 4" in ended.out
    runs = [run for of_job in ended.ran().values() for run in of_job]
    assert len(runs) == 3
    assert max_concurrency(runs) == 2
    for one in runs:
        for other in runs:
            if one is not other and one["start"] <= other["start"] < one["end"]:
                assert {one["gpus"], other["gpus"]} == {"0", "1"}
    assert len({run["pid"] for run in runs}) == 3
    assert "4 of 4" in ended.out
    assert "killed by SIGKILL" in ended.out
    assert (ended.folder / "model.dropout=0.1" / "output.log").exists()


@pytest.fixture
def gpu_machine(fake_mps: Path, environment: dict[str, str]) -> Path:
    """Stand-ins for one GPU with 80 GB and for MPS, for commands that ``multirun`` starts."""
    for name in ("STANDINS", "PATH", "LD_LIBRARY_PATH"):
        environment[name] = os.environ[name]
    environment.pop("OMP_NUM_THREADS", None)
    return fake_mps


ON_ONE_GPU = (
    "hydra/launcher=ray_local", "hydra.launcher.ray.init.num_gpus=1",
    "hydra.launcher.ray.init.num_cpus=4",
)  # fmt: skip


def test_jobs_share_a_gpu_through_mps(multirun: Run, gpu_machine: Path) -> None:
    ended = multirun("-m", "model.dropout=0.1,0.2,2", *ON_ONE_GPU, STUB_JOBS="2")
    assert ended.status == 1, ended.out
    assert "Up to 2 jobs share a GPU through NVIDIA's MPS." in ended.out
    runs = [run for of_job in ended.ran().values() for run in of_job]
    assert len(runs) == max_concurrency(runs) == 2  # the third has failed
    (started,) = calls(gpu_machine, "start")
    folder, *_ = started.split()
    for run in runs:
        assert run["gpus"] == "0"
        assert run["shared"] == {
            "CUDA_MPS_PIPE_DIRECTORY": folder,
            "CUDA_MPS_LOG_DIRECTORY": folder,
            "CAPTIONING_GPU_SHARE": "0.5",
            "OMP_NUM_THREADS": "2",
        }
    assert calls(gpu_machine, "quit") == [folder]
    assert not Path(folder).exists()


@pytest.mark.slow
def test_mps_ends_when_a_sweep_is_stopped(start: Start, gpu_machine: Path, tmp_path: Path) -> None:
    process = start("-m", "model.dropout=0.1,4", *ON_ONE_GPU)
    job = waiting_job(tmp_path)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    (folder,) = calls(gpu_machine, "quit")
    assert not Path(folder).exists()
    assert is_gone(job)


@pytest.mark.slow
def test_without_mps_jobs_run_as_before(multirun: Run, gpu_machine: Path) -> None:
    (gpu_machine / "refuse").touch()
    ended = multirun("-m", "model.dropout=0.1,0.2", *ON_ONE_GPU)
    assert ended.status == 0, ended.out
    assert (
        "One job runs on each GPU at a time: NVIDIA's MPS is not available "
        "(nvidia-cuda-mps-control ended at once: An instance of this daemon is already running)."
    ) in ended.out
    runs = [run for of_job in ended.ran().values() for run in of_job]
    assert max_concurrency(runs) == 1
    assert {run["shared"]["CUDA_MPS_PIPE_DIRECTORY"] for run in runs} == {None}


def calls(stand_ins: Path, command: str) -> list[str]:
    """The arguments of the calls of a command that the stand-in for MPS has recorded."""
    lines = (stand_ins / "calls").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{command} ")]


def sharing(
    mps: Any, *settings: dict[str, Any], jobs: int = 4, address: str = "local", chosen: Any = None
) -> tuple[RayLauncher, float | None]:
    """The launcher, and the share of a GPU that it gives to each of some jobs.

    Args:
        mps: as in the launcher's settings.
        settings: of the jobs, which have them in turn.
        jobs: how many there are.
        address: of Ray.
        chosen: the share that the user chose.
    """
    ray = OmegaConf.create({"init": {"address": address}, "remote": {"num_gpus": chosen}})
    launcher = RayLauncher(ray, mps)
    plain = OmegaConf.create({"trainer": {"devices": 1}, "encoder": {"trainable": False}})
    merged = [OmegaConf.merge(plain, each) for each in settings or ({},)]
    configs = [merged[number % len(merged)] for number in range(jobs)]
    return launcher, launcher.gpus_of_a_job([{"CPU": 16.0, "GPU": 1.0}], configs)  # type: ignore[arg-type]


def test_mps_is_not_asked_for_jobs_that_do_not_share(gpu_machine: Path) -> None:
    for settings in (
        {"trainer": {"devices": 2}},
        {"trainer": {"accelerator": "cpu"}},
        {"encoder": {"trainable": True}},
    ):
        assert sharing("auto", settings)[1] is None
        assert sharing("auto", {}, settings)[1] is None  # half of the jobs
    assert sharing("auto", jobs=1)[1] is None
    assert sharing("auto", address="auto")[1] is None  # a cluster has other machines
    assert sharing(False)[1] is None
    for share in (1, 2.0, 0):
        assert sharing("auto", chosen=share)[1] == share
    assert sharing(False, chosen=0.5)[1] == 0.5
    assert not (gpu_machine / "calls").exists()


def test_mps_that_was_refused_is_not_tried_again(
    gpu_machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (gpu_machine / "refuse").touch()
    with caplog.at_level("INFO"):
        launcher, share = sharing("auto")
    assert share is None
    assert caplog.text.count("One job runs on each GPU at a time") == 1
    assert not launcher.start_mps()
    assert len(calls(gpu_machine, "start")) == 1


def test_a_share_that_the_user_chose_is_kept_with_a_warning_if_jobs_take_turns(
    gpu_machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (gpu_machine / "refuse").touch()
    assert sharing("auto", chosen=0.25)[1] == 0.25
    assert "take turns, which gains nothing: NVIDIA's MPS is not available" in caplog.text


@pytest.mark.slow
def test_a_ray_worker_or_the_command_killed_outright_is_outlived(
    start: Start, multirun: Run, tmp_path: Path
) -> None:
    command = (
        "-m", "model.dropout=0.1,4", "hydra/launcher=ray_local",
        "hydra.launcher.ray.init.num_cpus=2",
    )  # fmt: skip
    process = start(*command)
    job = waiting_job(tmp_path)
    worker = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "model.dropout=4: the Ray worker died" in out
    assert "1 finished, 1 failed" in out
    assert is_gone(job)

    (folder,) = (tmp_path / "runs" / "sweep").iterdir()
    (folder / "model.dropout=4" / "checkpoints" / "last.ckpt").unlink()
    (folder / "model.dropout=4" / "pid").unlink()
    process = start(*command)
    job = waiting_job(tmp_path)
    process.kill()
    process.communicate()
    assert is_gone(job)
    after = multirun(*command)
    assert after.status == 0, after.out
    assert [len(runs) for runs in after.ran().values()] == [1, 1]


def waiting_job(folder: Path) -> int:
    """The process id of the job that waits to be killed."""
    for _ in range(1200):
        for path in folder.rglob("pid"):
            if text := path.read_text():
                return int(text)
        time.sleep(0.05)
    raise TimeoutError


def is_gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(200):
        path = Path(f"/proc/{pid}/stat")
        if not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@contextmanager
def ray_node(environment: dict[str, str], *options: str) -> Iterator[str]:
    """A machine of a cluster, as ``ray start`` makes it; gives what it printed."""
    process = subprocess.Popen(
        [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1",
         "--object-store-memory=78643200", *options],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "--block" in line or "Ray runtime started" in line:
                break
        yield "".join(lines)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_a_sweep_spreads_over_the_machines_of_a_cluster(
    multirun: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    head = environment | {"STUB_NODE": "head", "STUB_JOBS": "2"}
    second = environment | {"STUB_NODE": "second", "STUB_JOBS": "2"}
    address = "127.0.0.1:63790"
    with (
        ray_node(head, "--head", "--port=63790", "--include-dashboard=false"),
        ray_node(second, f"--address={address}") as printed,
    ):
        assert "Ray runtime started" in printed
        ended = multirun(
            "-m", "model.dropout=0.1,0.2,0.3,0.4", "hydra/launcher=ray_cluster",
            f"hydra.launcher.ray.init.address={address}",
        )  # fmt: skip
    assert ended.status == 0, ended.out
    runs = [run for of_job in ended.ran().values() for run in of_job]
    assert len(runs) == 4
    assert {run["node"] for run in runs} == {"head", "second"}
    assert max_concurrency(runs) == 2


def test_what_a_job_takes_of_a_cluster() -> None:
    def taken(nodes: list[dict[str, float]], devices: Any, **given: Any) -> tuple[float, float]:
        trainer = {"devices": devices, "accelerator": given.pop("accelerator", "auto")}
        remote = job_resources(nodes, trainer, {"num_gpus": None, "num_cpus": None} | given)
        assert remote["max_retries"] == 0
        return remote["num_gpus"], remote["num_cpus"]

    cpus, big, small = {"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 6.0, "GPU": 2.0}
    assert taken([cpus, cpus], 1) == (0, 1)
    assert taken([cpus, cpus], 2) == (0, 2)
    assert taken([cpus, big], "auto") == (1, 8)
    assert taken([big, small], 2) == (2, 6)
    assert taken([big, small], [0, 1]) == (2, 6)
    assert taken([big], 1, accelerator="cpu") == (0, 1)
    # Two jobs on each of 8 GPUs: 16 jobs share the machine's 64 CPUs.
    assert taken([big], 1, num_gpus=0.5) == (0.5, 4)
    assert taken([big], 1, num_cpus=2) == (1, 2)
    assert taken([{"CPU": 14.0, "GPU": 1.0}], 1, num_gpus=0.1428) == (0.1428, 2)  # a seventh


def test_a_job_that_no_machine_has_room_for_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Without this check, Ray would wait for ever."""
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}]
    check_resources({"num_gpus": 2, "num_cpus": 8}, nodes, {}, local=True)
    check_resources({"num_gpus": 0, "num_cpus": 64}, nodes, {"num_nodes": 1}, local=True)
    with pytest.raises(SystemExit, match="needs 4 GPUs and 16 CPUs, which no machine has"):
        check_resources({"num_gpus": 4, "num_cpus": 16}, nodes, {}, local=True)
    with pytest.raises(SystemExit, match="needs 1 GPUs and 64 CPUs, which no machine has"):
        check_resources({"num_gpus": 1, "num_cpus": 64}, nodes, {}, local=True)
    with pytest.raises(SystemExit, match="use hydra/launcher=slurm to run one on several"):
        check_resources({"num_gpus": 1, "num_cpus": 1}, nodes, {"num_nodes": 2}, local=True)
    with caplog.at_level("WARNING"):  # a cluster may grow
        check_resources({"num_gpus": 4, "num_cpus": 16}, nodes, {}, local=False)
    assert "waiting until such a machine joins" in caplog.text


def test_slurm_needs_a_number_of_devices(multirun_here: Run) -> None:
    ended = multirun_here("-m", "seed=0,1", "hydra/launcher=slurm", "trainer=ddp")
    assert ended.status == 1
    assert ended.out.splitlines()[-1].startswith("error: hydra.launcher.gpus_per_node=auto")


def test_slurm_by_submitits_local_executor(multirun: Run) -> None:
    ended = multirun(
        "-m", "model.dropout=0.1,3", "hydra/launcher=slurm", "hydra.launcher.cluster=local",
        "hydra.launcher.gpus_per_node=null", "hydra.launcher.partition=any",
        STUB_LATE_SUBMISSION="2",  # as on a machine that runs the jobs before anything else
    )  # fmt: skip
    assert ended.status == 1, ended.out
    assert ended.ran().keys() == {"model.dropout=0.1"}, ended.out
    assert "model.dropout=3: The process was killed by SIGKILL" in ended.out
    assert "1 finished, 1 failed" in ended.out


@pytest.mark.slow
def test_what_slurm_kills_is_outlived(start: Start, multirun: Run, tmp_path: Path) -> None:
    command = (
        "-m", "model.dropout=0.1,4", "hydra/launcher=slurm", "hydra.launcher.cluster=local",
        "hydra.launcher.gpus_per_node=null",
    )  # fmt: skip
    process = start(*command)
    job = waiting_job(tmp_path)
    task = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(task, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"model.dropout=4: SLURM job \S+ died", out), out
    assert "1 finished, 1 failed" in out
    assert is_gone(job)
    after = multirun(*command)
    assert after.status == 0, after.out
    assert [len(runs) for runs in after.ran().values()] == [1, 1]


@pytest.mark.usefixtures("jobs_here")
def test_a_search_goes_on_after_failures_and_interruptions(multirun_here: Run) -> None:
    options = ("sweep=optuna", "hydra.sweeper.params=null", "seed=int(interval(1,1000))")
    first = multirun_here(*options, "model.dropout=2,5,0.3,0.4", "hydra.sweeper.n_trials=8")
    import optuna

    def trials() -> list[Any]:
        """The trials of the latest study."""
        storage = f"sqlite:///{first.folder / 'optuna.db'}"
        studies = optuna.get_all_study_summaries(storage)
        latest = max(studies, key=lambda study: study._study_id)
        return optuna.load_study(study_name=latest.study_name, storage=storage).trials

    assert {trial.params["model.dropout"] for trial in trials()} >= {"2", "5"}, first.out
    assert len(trials()) == 8
    assert all(isinstance(trial.params["seed"], int) for trial in trials())
    assert first.status == 1
    for trial in trials():
        good = trial.params["model.dropout"] in {"0.3", "0.4"}
        assert trial.state.name == ("COMPLETE" if good else "FAIL")
    assert "best_value: 0.04" in (first.folder / "optimization_results.yaml").read_text()
    nothing = multirun_here(*options, "model.dropout=2,5,0.3,0.4", "hydra.sweeper.n_trials=8")
    assert nothing.folder == first.folder
    assert len(trials()) == 8
    assert nothing.ran() == first.ran()

    # Other choices: earlier trials that the new space still allows count, and nothing runs twice.
    kept = [trial.params for trial in trials() if trial.params["model.dropout"] != "2"]
    wider = multirun_here(
        *options, "model.dropout=5,0.3,0.4,0.9", f"hydra.sweeper.n_trials={len(kept) + 2}"
    )
    assert wider.folder == first.folder
    assert [trial.params for trial in trials()[: len(kept)]] == kept, wider.out
    assert len(trials()) == len(kept) + 2
    assert all(len(runs) == 1 for runs in wider.ran().values())


@pytest.mark.slow
def test_an_interrupted_trial_comes_first(start: Start, multirun: Run, tmp_path: Path) -> None:
    options = ("sweep=optuna", "hydra.sweeper.params=null", "hydra.sweeper.n_trials=1")
    command = (*options, "model.dropout=4", "optimizer.lr=tag(log,interval(1e-4,1e-2))")
    process = start(*command)
    job = waiting_job(tmp_path)
    process.kill()
    process.communicate()
    assert is_gone(job)
    (folder,) = {path.parent.name for path in tmp_path.rglob("pid")}
    after = multirun(*command)
    assert after.status == 0, after.out
    ran = after.ran()
    assert list(ran) == [folder]
    assert ran[folder][0]["resume"]


@pytest.mark.usefixtures("jobs_here")
def test_a_named_sweep_needs_no_further_option(multirun_here: Run) -> None:
    ended = multirun_here("sweep=attention_dropout", "model.attention_dim=3,4")
    assert ended.status == 0, ended.out
    assert ended.folder.name.startswith("attention_dropout-")
    assert ended.ran().keys() == {
        f"model.attention_dim={size},model.dropout={dropout}"
        for size in (3, 4)
        for dropout in (0.3, 0.5)
    }


@pytest.mark.parametrize("file", sorted((CONF / "hydra").glob("*/*.yaml")), ids=lambda f: f.stem)
def test_every_key_of_hydras_own_choices_is_an_argument(file: Path) -> None:
    settings = yaml.safe_load(file.read_text())
    module, _, name = settings.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    known = set(parameters)
    if "settings" in parameters:
        from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

        known |= set(SlurmQueueConf.__dataclass_fields__)
    assert settings.keys() <= known

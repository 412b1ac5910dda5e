"""MPS, with stand-ins for NVIDIA's control daemon and for the CUDA driver; no GPU is used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioning.support.signals import STOPPING
from captioning.sweeps import mps
from captioning.sweeps.mps import MPSUnavailableError, mps_daemon


class Daemon:
    """What the stand-ins of a test have recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self, command: str) -> list[str]:
        """The arguments of the calls of a command."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{command} ")]


@pytest.fixture
def stand_ins(fake_mps: Path) -> Daemon:
    return Daemon(fake_mps)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def ends(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not is_running(pid)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_daemon_of_its_own_lives_as_long_as_the_sweep(
    stand_ins: Daemon, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    before = dict(os.environ)
    try:
        with mps_daemon() as environment:
            folder = Path(environment.pop("CUDA_MPS_PIPE_DIRECTORY"))
            assert environment.pop("CUDA_MPS_LOG_DIRECTORY") == str(folder)
            assert not environment
            # The daemon numbers the devices itself, if it is told which ones are visible.
            assert stand_ins.calls("start") == [f"{folder} {folder} devices=all"]
            pid = int((folder / "pid").read_text())
            assert is_running(pid)
            assert folder.stat().st_mode & 0o777 == 0o700
            assert not stand_ins.calls("quit")
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error
    assert stand_ins.calls("quit") == [str(folder)]
    assert not is_running(pid)
    assert not folder.exists()
    assert dict(os.environ) == before


def test_a_daemon_of_its_own_ends_with_a_command_that_is_killed(stand_ins: Daemon) -> None:
    program = (
        "import os, signal; from captioning.sweeps.mps import mps_daemon\n"
        "with mps_daemon(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (started,) = stand_ins.calls("start")
    folder = Path(started.partition(" ")[0])
    until = time.monotonic() + 20
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()
    assert stand_ins.calls("quit") == [str(folder)]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded")  # of a fork, which only sleeps
def test_a_process_that_was_forked_does_not_keep_the_daemon(stand_ins: Daemon) -> None:
    """It has a copy of the pipe, which therefore does not end when the sweep closes its own."""
    with mps_daemon() as environment:
        folder = Path(environment["CUDA_MPS_PIPE_DIRECTORY"])
        pid = int((folder / "pid").read_text())
        forked = os.fork()
        if not forked:
            time.sleep(60)
            os._exit(0)
    try:
        assert not is_running(pid)
        assert stand_ins.calls("quit") == [str(folder)]
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


@pytest.mark.usefixtures("stand_ins")
def test_signals_to_all_processes_of_a_job_do_not_end_the_daemon_before_the_command() -> None:
    with mps_daemon() as environment:
        pid = int(Path(environment["CUDA_MPS_PIPE_DIRECTORY"], "pid").read_text())
        parent = parent_of(pid)
        # Ctrl-C in a terminal is sent to the process group of the command.
        assert len({os.getpgrp(), os.getpgid(parent), os.getpgid(pid)}) == 3
        for number in STOPPING:
            os.kill(parent, number)
        time.sleep(0.3)
        assert is_running(parent)
        assert is_running(pid)
    assert not is_running(parent)
    assert not is_running(pid)


def test_a_daemon_that_is_running_is_used_and_left_running(stand_ins: Daemon) -> None:
    default = stand_ins.folder / "default"
    default.mkdir()
    with subprocess.Popen(["nvidia-cuda-mps-control", "-f"]) as theirs:
        try:
            while not (default / "pid").exists():
                time.sleep(0.02)
            with mps_daemon() as environment:
                assert environment == {}
                assert (default / "server").exists()
            assert len(stand_ins.calls("start")) == 1
            assert not stand_ins.calls("quit")
            assert theirs.poll() is None
        finally:
            theirs.kill()


def test_without_mps_the_reason_is_given(
    stand_ins: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason() -> str:
        with pytest.raises(MPSUnavailableError) as caught, mps_daemon():
            pass
        for started in stand_ins.calls("start"):  # nothing is left of a failed start
            assert not Path(started.partition(" ")[0]).exists()
        return str(caught.value)

    monkeypatch.setenv("STANDIN_ERROR", "805")
    assert reason() == "a CUDA program could not use it: cuInit failed with CUDA's error 805"
    assert len(stand_ins.calls("quit")) == 1
    monkeypatch.delenv("STANDIN_ERROR")
    monkeypatch.setenv("STANDIN_IGNORES_MPS", "1")
    assert reason() == "a CUDA program could not use it: it ran without an MPS server"
    (stand_ins.folder / "refuse").touch()
    assert reason() == (
        "nvidia-cuda-mps-control ended at once: An instance of this daemon is already running"
    )
    monkeypatch.setenv("PATH", str(stand_ins.folder))
    assert reason() == "there is no nvidia-cuda-mps-control"


def test_a_daemon_that_does_not_answer_is_ended(
    stand_ins: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mps, "_START_SECONDS", 0.5)
    monkeypatch.setattr(mps, "_answers", lambda _: False)
    with pytest.raises(MPSUnavailableError, match=r"did not answer within 0\.5 s"), mps_daemon():
        pass
    assert len(stand_ins.calls("quit")) == 1


def test_a_daemon_that_does_not_quit_is_killed(
    stand_ins: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (stand_ins.folder / "deaf").touch()
    monkeypatch.setattr(mps, "_COMMAND_SECONDS", 0.5)
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(pipe))
    with (tmp_path / "empty").open("w+") as empty:
        monkeypatch.setattr(sys, "stdin", empty)  # it ends at once
        status = mps.daemon(pipe)
    assert status == -signal.SIGKILL
    assert not pipe.exists()


@pytest.mark.gpu
def test_on_a_gpu_two_programs_use_it() -> None:
    """With NVIDIA's own daemon and driver."""
    program = "import torch; print(torch.ones(3, device='cuda').sum().item())"
    with mps_daemon() as environment:
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                env=os.environ | environment, text=True, stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]  # fmt: skip
        assert [each.communicate()[0] for each in programs] == ["3.0\n"] * 2
    if environment:
        assert not Path(environment["CUDA_MPS_PIPE_DIRECTORY"]).exists()

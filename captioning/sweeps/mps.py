"""NVIDIA's Multi-Process Service (MPS), for jobs that share a GPU.

Without MPS, a GPU runs the kernels of one process at a time, and processes take turns. With it, the
kernels of several processes run side by side. :func:`mps_daemon` starts a control daemon of its
own, with files of its own, and changes no setting of the GPU.

    python -m captioning.sweeps.mps daemon FOLDER   runs the daemon until standard input ends
    python -m captioning.sweeps.mps client          checks that a CUDA program can use MPS

The first is the parent of the daemon, and ends it however the command ends that started the sweep:
the kernel closes the pipe even if that command is killed.

Source: https://docs.nvidia.com/deploy/mps/
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from captioning.support.files import reason_of
from captioning.support.signals import STOPPING

CONTROL = "nvidia-cuda-mps-control"
"""The daemon, which is also the program that sends commands to a running daemon."""

PIPE_DIRECTORY, LOG_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

_START_SECONDS = 30  # for the daemon to answer
_CLIENT_SECONDS = 60  # for a CUDA program to connect; the first one starts the server
_COMMAND_SECONDS = 10


class MPSUnavailableError(Exception):
    """MPS cannot be used here. The message is the reason, and fits into a sentence."""


@contextmanager
def mps_daemon() -> Iterator[dict[str, str]]:
    """Within the block, programs that get the environment variables share GPUs through MPS.

    A daemon that is running already is used, and no variables are needed. Otherwise a daemon is
    started, and ended after the block, or when this process dies.

    The share of multiprocessors that a program may use (``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE``) is
    not limited. A limit changes how many of them CUDA reports, by which libraries choose their
    kernels, so that results would not be those of a run that has the GPU to itself.

    Yields:
        The environment variables.

    Raises:
        MPSUnavailableError: there is no MPS, or it was refused.
    """
    if shutil.which(CONTROL) is None:
        raise MPSUnavailableError(f"there is no {CONTROL}")
    if _answers({}):
        _check_client({})
        yield {}
        return
    # Not in TMPDIR: the names of sockets may have no more than 107 characters.
    try:
        folder = Path(tempfile.mkdtemp(prefix="captioning-mps-", dir="/tmp"))
    except OSError as error:
        raise MPSUnavailableError(f"/tmp: {reason_of(error)}") from None
    environment = {PIPE_DIRECTORY: str(folder), LOG_DIRECTORY: str(folder)}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "captioning.sweeps.mps", "daemon", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal does not reach it
            env=_environment(environment),
        )
        assert process.stdin is not None
        try:
            _wait_for(process, environment, output)
            _check_client(environment)
            yield environment
        finally:
            with suppress(BrokenPipeError):  # it has ended already
                process.stdin.write(b"\n")  # a forked process may hold the pipe open
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(3 * _COMMAND_SECONDS)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of the daemon.

    ``CUDA_VISIBLE_DEVICES`` is left out. The daemon would count only these devices, from 0, and a
    program whose own variable has the number of a device in the machine would not find it.
    """
    environment = os.environ | variables
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def _answers(variables: Mapping[str, str]) -> bool:
    """Whether a daemon is running."""
    try:
        answer = _send("get_server_list", variables)
    except (OSError, subprocess.SubprocessError):
        return False
    return "Cannot find" not in answer


def _send(command: str, variables: Mapping[str, str]) -> str:
    """Send a command to the daemon; returns what it prints.

    Raises:
        OSError: the control program cannot be run.
        subprocess.SubprocessError: there is no daemon, or it does not answer.
    """
    done = subprocess.run(
        [CONTROL], input=f"{command}\n", env=os.environ | variables, timeout=_COMMAND_SECONDS,
        check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def _wait_for(
    process: subprocess.Popen[bytes], variables: Mapping[str, str], output: IO[bytes]
) -> None:
    """Wait until the daemon answers.

    Raises:
        MPSUnavailableError: it has ended, or does not answer in time.
    """
    until = time.monotonic() + _START_SECONDS
    while not _answers(variables):
        if process.poll() is not None:
            output.seek(0)
            lines = output.read().decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "no reason")
            raise MPSUnavailableError(f"{CONTROL} ended at once: {said}")
        if time.monotonic() > until:
            raise MPSUnavailableError(f"{CONTROL} did not answer within {_START_SECONDS} s")
        time.sleep(0.1)


def _check_client(variables: Mapping[str, str]) -> None:
    """Check that a CUDA program can use MPS.

    Otherwise every job would fail, for example with a GPU that MPS does not support.

    Raises:
        MPSUnavailableError: it cannot.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "captioning.sweeps.mps", "client"],
            env=os.environ | variables, timeout=_CLIENT_SECONDS,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MPSUnavailableError(f"no CUDA program started within {_CLIENT_SECONDS} s") from None
    if done.returncode:
        said = done.stdout.strip().rpartition("\n")[2]
        raise MPSUnavailableError(f"a CUDA program could not use it: {said}")


def daemon(folder: Path) -> int:
    """Run the control daemon, with its files in a folder, until standard input has a byte or ends.

    Returns:
        Its exit status. The folder has then been removed.
    """
    # Its own process group, so that it can be killed together with its servers.
    process = subprocess.Popen([CONTROL, "-f"], stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_quit_after_input, args=(process,), daemon=True).start()
    try:
        return process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _quit_after_input(process: subprocess.Popen[bytes]) -> None:
    """End the daemon at the first byte or the end of standard input; kill it if it does not end."""
    os.read(sys.stdin.fileno(), 1)
    with suppress(OSError, subprocess.SubprocessError):
        _send("quit", {})
    try:
        process.wait(_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def client() -> None:
    """Make a CUDA context on each visible GPU, and ask whether an MPS server is running then.

    The driver's own library is called, because importing torch takes seconds.
    """
    cuda: Any = ctypes.CDLL("libcuda.so.1")

    def call(function: str, *arguments: Any) -> None:
        status = getattr(cuda, function)(*arguments)
        if status:
            sys.exit(f"{function} failed with CUDA's error {status}")

    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    for number in range(count.value):
        call("cuDeviceGet", ctypes.byref(device), number)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    if not _send("get_server_list", {}).strip():
        sys.exit("it ran without an MPS server")


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client()
    else:
        for number in STOPPING:  # SLURM sends them to all processes; only the command ends this one
            signal.signal(number, lambda *_: None)
        sys.exit(daemon(Path(sys.argv[2])))

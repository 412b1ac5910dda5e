"""Sequential sweeps: which jobs are skipped, resumed, run again or refused, and the reports."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from captioning.support.own_code import own_code
from captioning.sweeps import jobs
from captioning.sweeps.jobs import describe_exit, relevant_settings

ROOT = Path(__file__).parents[2]

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]


def wait_for(path: Path) -> str:
    """Wait for a file that another process is about to write; returns its content."""
    for _ in range(600):
        if path.is_file() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise TimeoutError(path)


def ended(pid: int) -> bool:
    """Whether a process has ended within five seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_same_command_runs_only_what_is_missing(multirun_here: Run) -> None:
    command = ("-m", "model.dropout=0.3,2,3", "seed=1")
    first = multirun_here(*command)
    assert first.status == 1, first.out
    assert first.folder.name.startswith("model.dropout-")
    done = first.ran()
    assert done.keys() == {"model.dropout=0.3"}
    failed = {path.parent.name: json.loads(path.read_text()) for path in failures(first)}
    assert failed["model.dropout=2"] == {
        "reason": "MemoryError: no more memory",
        "overrides": ["model.dropout=2"],
    }
    assert "killed by SIGKILL" in failed["model.dropout=3"]["reason"]
    assert len(failed) == 2
    assert "1 finished, 2 failed" in first.out
    assert first.out.count("failed: model.dropout=2: MemoryError: no more memory") == 1
    for name in ("leaderboard.md", "leaderboard.html", "sweep.html", "sweep.png"):
        assert (first.folder / name).stat().st_size > 200
        assert bytes(first.folder) not in (first.folder / name).read_bytes()
    page = (first.folder / "sweep.html").read_text()
    assert "failed: MemoryError: no more memory" in page
    assert "data:image/png;base64," in page

    again = multirun_here(*command)
    assert again.folder == first.folder
    assert again.status == 1, again.out  # the stub fails at model.dropout=2 every time
    ran = again.ran()
    assert ran["model.dropout=0.3"] == done["model.dropout=0.3"]
    (continued,) = ran["model.dropout=3"]
    assert continued["resume"].endswith("model.dropout=3/checkpoints/last.ckpt")
    assert [path.parent.name for path in failures(first)] == ["model.dropout=2"]

    more = multirun_here("-m", "model.dropout=0.3,0.4", "seed=1")
    assert more.folder == first.folder  # another value belongs to the same sweep
    assert more.status == 0, more.out  # the value that failed is not part of this command
    assert len(more.ran()["model.dropout=0.3"]) == 1
    # Each job ran in its own process, and all of them in the same wandb group.
    runs = [run for of_job in more.ran().values() for run in of_job]
    assert len({run["pid"] for run in runs}) == len(runs) == 3
    assert {run["group"] for run in runs} == {first.folder.name}


def failures(ended: Any) -> list[Path]:
    """The ``failed.json`` files of a multirun."""
    return sorted(ended.folder.glob("*/failed.json"))


@pytest.mark.usefixtures("jobs_here")
def test_other_settings_or_data_are_another_sweep(
    multirun_here: Run, data: Path, tmp_path: Path
) -> None:
    first = multirun_here("-m", "model.dropout=choice(0.3)")
    wider = multirun_here("-m", "model.dropout=choice(0.3)", "model.embed_dim=16")
    assert first.folder != wider.folder
    # Another path to the same data is the same sweep; other data is not.
    other = shutil.copytree(data, tmp_path / "data")
    moved = multirun_here("-m", "model.dropout=choice(0.3)", f"data.root={other}")
    assert moved.folder == first.folder
    assert all(len(runs) == 1 for runs in moved.ran().values())
    captions = other / "dataset_flickr8k.json"
    captions.write_text(captions.read_text().replace("red", "pink"))
    refused = multirun_here("-m", "model.dropout=choice(0.3)", f"data.root={other}")
    assert refused.status == 1
    assert "other data" in refused.out
    assert refused.ran() == moved.ran()


def test_a_command_killed_outright_leaves_no_job_behind_and_goes_on(
    multirun_here: Run, start: Start, tmp_path: Path
) -> None:
    command = ("-m", "model.dropout=0.3,4,0.4")
    process = start(*command)
    pid = int(wait_for(next_pid(tmp_path)))
    process.kill()
    process.communicate()
    assert ended(pid)
    after = multirun_here(*command)
    assert after.status == 0, after.out
    ran = after.ran()
    assert ran["model.dropout=4"][0]["resume"]
    assert [len(runs) for runs in ran.values()] == [1, 1, 1]


def next_pid(folder: Path) -> Path:
    """The file with the process id of the job that waits to be killed."""
    for _ in range(1200):
        if found := next(folder.rglob("pid"), None):
            return found
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")],
)
def test_a_signal_ends_the_multirun_and_its_job(
    start: Start, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    process = start("-m", "model.dropout=4,0.3")
    pid = int(wait_for(next_pid(tmp_path)))
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    *_, job, last = out.splitlines()
    assert "Stopped; it can be continued" in job
    assert job.endswith("model.dropout=4")
    assert last == f"{words}; the same command continues"
    assert "Traceback" not in out
    assert ended(pid)
    assert not list(tmp_path.rglob("results.json")), out


def test_nothing_starts_where_a_key_is_wrong(multirun_here: Run, tmp_path: Path) -> None:
    ended = multirun_here("-m", "model.dropuot=0.3,0.4")
    assert ended.status == 1
    assert "model.dropuot" in ended.out
    assert not list(tmp_path.rglob("job.json"))


@pytest.mark.usefixtures("jobs_here")
def test_a_folder_with_another_run_is_not_touched(multirun_here: Run, tmp_path: Path) -> None:
    taken = tmp_path / "mine" / "model.dropout=0.3"
    (taken / "checkpoints").mkdir(parents=True)
    ended = multirun_here("-m", "model.dropout=0.3,0.4", "hydra.sweep.dir=mine")
    assert ended.status == 1
    assert "is not overwritten" in ended.out
    assert not (taken / "results.json").exists()
    assert (tmp_path / "mine" / "model.dropout=0.4" / "results.json").exists()


@pytest.mark.usefixtures("jobs_here")
def test_folders_have_names_that_any_file_system_takes(multirun_here: Run) -> None:
    long = "x" * 300
    ended = multirun_here("-m", f"name='two words',a/b,a_b,{long},{long}y", "+trainer.max_steps=3")
    assert ended.status == 0, ended.out
    folders = {path.name for path in ended.folder.iterdir() if path.is_dir()}
    assert len(folders) == 5  # none is nested in another
    assert {"name=two words", "name=a_b"} < folders
    assert all(len(name) < 200 for name in folders)


@pytest.mark.usefixtures("jobs_here")
def test_a_key_for_two_places_is_two_keys(multirun_here: Run) -> None:
    ended = multirun_here("-m", "decoding=beam,greedy", "decoding@validation=greedy")
    assert ended.status == 0, ended.out
    assert ended.ran().keys() == {"decoding=beam", "decoding=greedy"}


@pytest.mark.usefixtures("jobs_here")
def test_a_job_of_which_nothing_varies_has_a_folder_too(multirun_here: Run) -> None:
    ended = multirun_here("-m", "model.dropout=0.3")
    assert ended.status == 0, ended.out
    assert ended.ran().keys() == {"job"}


@pytest.mark.usefixtures("jobs_here")
def test_two_sweeps_in_one_folder_are_one_picture(multirun_here: Run, tmp_path: Path) -> None:
    """For a key that a run does not override, the page shows the value of its configuration."""
    for swept in ("model.dropout=0.3,0.4", "model.attention_dim=8,16"):
        ended = multirun_here("-m", swept, "hydra.sweep.dir=mine")
        assert ended.status == 0, ended.out
    page = (tmp_path / "mine" / "sweep.html").read_text()
    cells = {tuple(re.findall("<td>([^<]*)</td>", row)[:2]) for row in page.split("<tr>")[2:]}
    assert cells == {("8", "0.5"), ("16", "0.5"), ("512", "0.3"), ("512", "0.4")}
    assert (tmp_path / "mine" / "sweep.png").exists()


def test_what_cannot_be_a_sweep_is_refused_in_a_sentence(
    multirun_here: Run, tmp_path: Path
) -> None:
    ended = multirun_here("-m", "model.dropout=0.3,0.4", "resume=last.ckpt")
    assert ended.status == 1
    assert ended.out.startswith("error: resume is for a single run")
    (tmp_path / "file").touch()
    ended = multirun_here("-m", "model.dropout=0.3,0.4", "hydra.sweep.dir=file/sweep")
    assert ended.status == 1
    assert ended.out == (
        f"error: hydra.sweep.dir={tmp_path}/file/sweep cannot be written (Not a directory): choose "
        "another folder, one in which you may write.\n"
    )
    assert not list(tmp_path.rglob("job.json"))


def test_a_multirun_of_eval_ends_with_a_leaderboard(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    captions = [{"image_id": "a.jpg", "caption": "a dog runs"}]
    (tmp_path / "in").mkdir()
    for name in ("first", "second"):
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(captions))
    references = {"a.jpg": ["a dog runs fast", "the dog runs"]}
    (tmp_path / "references.json").write_text(json.dumps(references))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONING_CACHE", environment["CAPTIONING_CACHE"])
    monkeypatch.setattr(sys, "argv", [
        "eval.py", "-m", "references=references.json",
        "captions=in/first.json,in/second.json,in/third.json", "hydra.sweep.dir=out",
    ])  # fmt: skip
    assert tiny.status_of_script("eval.py") == 1
    assert "Traceback" not in "".join(capfd.readouterr())
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert [len(list(folder.glob("results.json"))) for folder in folders] == [1, 1, 0]
    (failed,) = (json.loads(path.read_text()) for path in tmp_path.rglob("failed.json"))
    assert failed["overrides"] == ["captions=in/third.json"]
    board = (tmp_path / "out" / "leaderboard.md").read_text()
    rows = [line.split(" |")[0] for line in board.splitlines() if line.startswith("| ")]
    assert len(rows) == 4  # two of them are the header
    assert "first" in rows[2]
    assert "second" in rows[3]
    assert re.search(r"^failed: captions=in_third.json-\w+: in/third.json", board, re.MULTILINE)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (143, "stopped by SIGTERM, as before a time limit"),
        (3, "exit status 3"),
        (-9, "SIGKILL, which"),
        (-15, "SIGTERM."),
    ],
)
def test_how_a_process_ended_is_said(status: int, words: str) -> None:
    assert words in describe_exit(status)


def test_only_what_changes_results_makes_another_run() -> None:
    config = {"seed": 0, "resume": None, "logger": {}, "data": {"root": "a", "batch_size": 4}}
    moved = config | {"resume": "x", "logger": {"a": 1}, "data": {"root": "b", "batch_size": 4}}
    assert relevant_settings(config) == relevant_settings(moved)
    assert relevant_settings(config) != relevant_settings(
        config | {"data": {"root": "a", "batch_size": 8}}
    )
    assert relevant_settings(config) != relevant_settings(config | {"seed": 1})


def test_a_job_that_has_finished_with_code_that_was_edited_since_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"model": {"_target_": "my_code.Decoder"}}
    (tmp_path / "my_code.py").write_text("class Decoder: ...")
    recorded = [own_code(config, start=tmp_path), None, {"my_code.Decoder": "other"}]
    warned = []
    monkeypatch.setattr(jobs, "read_results", lambda _: SimpleNamespace(own_code=recorded[0]))
    while recorded:
        jobs.warn_of_edits(tmp_path / "job", config, tmp_path)
        warned.append("my_code.Decoder was edited after" in caplog.text)
        del recorded[0]
    assert warned == [False, False, True]
    assert "delete that folder" in caplog.text


@pytest.mark.usefixtures("jobs_here")
def test_results_that_cannot_be_read_are_a_failure_with_a_reason(multirun_here: Run) -> None:
    first = multirun_here("-m", "model.dropout=0.3,0.4")
    (first.folder / "model.dropout=0.3" / "results.json").write_text("{")
    again = multirun_here("-m", "model.dropout=0.3,0.4")
    assert again.status == 1
    assert "Traceback" not in again.out
    assert again.out.splitlines()[-1].startswith("error: ")
    assert "model.dropout=0.3/results.json" in again.out.splitlines()[-1]


def test_two_commands_at_once_share_the_jobs(
    multirun_here: Run, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SECONDS", "1")
    other = start("-m", "model.dropout=0.3,0.4", STUB_SECONDS="1")
    ended = multirun_here("-m", "model.dropout=0.3,0.4")
    other.communicate(timeout=60)
    assert (ended.status, other.returncode) == (0, 0)
    assert all(len(runs) == 1 for runs in ended.ran().values())

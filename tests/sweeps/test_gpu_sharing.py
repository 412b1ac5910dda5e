"""How many jobs share a GPU, and what a job is told about its share."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.support.memory import own_gpu_memory
from captioning.sweeps.gpu_sharing import default_jobs, free_memory, memory_limit, share_of

GB = 1_000_000_000


@pytest.mark.parametrize(
    ("jobs", "machine", "free", "expected"),
    [
        (8, {"CPU": 16.0, "GPU": 1.0}, [80 * GB], 8),  # one H100
        (3, {"CPU": 16.0, "GPU": 1.0}, [80 * GB], 3),
        (1, {"CPU": 16.0, "GPU": 1.0}, [80 * GB], 1),
        (8, {"CPU": 8.0, "GPU": 1.0}, [80 * GB], 4),  # two cores for each
        (8, {"CPU": 16.0, "GPU": 1.0}, [25 * GB], 3),  # 8 GB for each
        (8, {"CPU": 64.0, "GPU": 2.0}, [80 * GB, 17 * GB], 2),  # the fuller GPU counts
        (8, {"CPU": 64.0, "GPU": 4.0}, [80 * GB] * 4, 2),
        (4, {"CPU": 64.0, "GPU": 4.0}, [80 * GB] * 4, 1),
        (9, {"CPU": 16.0, "GPU": 1.0}, [80 * GB], 5),  # five and four, not eight and one
        (40, {"CPU": 64.0, "GPU": 1.0}, [80 * GB], 8),
        (8, {"CPU": 2.0, "GPU": 1.0}, [5 * GB], 1),
        (8, {"CPU": 16.0, "GPU": 1.0}, [], 1),  # it is not known how large the GPU is
    ],
)
def test_each_job_has_room(
    jobs: int, machine: dict[str, float], free: list[int], expected: int
) -> None:
    assert default_jobs(jobs, machine, free) == expected


@given(st.integers(2, 48))
def test_as_many_shares_as_jobs_fit_into_a_gpu(jobs: int) -> None:
    """Ray rounds a share to ten-thousandths."""
    units = round(share_of(jobs) * 10_000)
    assert units / 10_000 == pytest.approx(share_of(jobs), abs=1e-12)
    assert jobs * units <= 10_000 < (jobs + 1) * units


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [70 << 20, 80 << 20]), ("1", [80 << 20]), ("GPU-aa", [70 << 20]), ("", [])],
)
def test_the_free_memory_is_that_of_the_visible_gpus(
    fake_mps: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[int]
) -> None:
    (fake_mps / "gpus").write_text("0, GPU-aa11, 70, [N/A]\n1, GPU-bb22, 80, Disabled\n")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free_memory() == expected


def test_the_free_memory_may_be_unknown(fake_mps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake_mps / "gpus").write_text("0, GPU-aa11, 70, Disabled\n1, GPU-bb22, 80, Enabled\n")
    assert free_memory() == []
    for said in ("0, GPU-aa11, [N/A], Disabled\n", "No devices were found\n"):
        (fake_mps / "gpus").write_text(said)
        assert free_memory() == []
    monkeypatch.setenv("PATH", str(fake_mps))
    assert free_memory() == []


def test_a_job_fills_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_gpu_memory(70 * GB, 80 * GB) == 70 * GB
    monkeypatch.setenv("CAPTIONING_GPU_SHARE", memory_limit(0.125)["CAPTIONING_GPU_SHARE"])
    assert own_gpu_memory(70 * GB, 80 * GB) == 10 * GB
    assert own_gpu_memory(4 * GB, 80 * GB) == 4 * GB
    assert memory_limit(1.0) == memory_limit(2.0) == memory_limit(0.0) == {}

"""Learning rates, step by step, against the formula and against torch's own schedulers."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from captioning.support.errors import CaptioningError
from captioning.training.schedules import Constant, WarmupCosine, build_scheduler

COSINE = {"_target_": "captioning.training.schedules.WarmupCosine"}


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates or (0.5,)]
    return torch.optim.SGD(groups)


def rates(spec: dict[str, Any], steps: int, *, total: int, lr: float = 0.5) -> list[float]:
    """The learning rate at each step of a run that steps its scheduler after every batch."""
    optim = optimizer(lr)
    scheduler = build_scheduler(spec, optim, total)
    found = []
    for _ in range(steps):
        found.append(optim.param_groups[0]["lr"])
        optim.step()
        scheduler.step()
    return found


def test_the_first_step_the_end_of_the_warm_up_and_the_last_step() -> None:
    found = rates(COSINE | {"warmup": 0.1, "final": 0.2}, 103, total=100)
    assert found[:10] == [0.5 * (step + 1) / 10 for step in range(10)]
    assert found[0] == 0.05
    assert found[9] == found[10] == 0.5  # the warm-up's end, and the cosine's start
    assert found[55] == pytest.approx(0.5 * 0.6)  # half way down from 1 to 0.2
    last = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 89 / 90))
    assert found[99] == pytest.approx(0.5 * last)
    assert found[100:] == pytest.approx([0.1, 0.1, 0.1])
    assert all(earlier > later for earlier, later in pairwise(found[10:101]))


def test_its_defaults_are_the_published_ones() -> None:
    assert rates(COSINE, 1000, total=1000) == rates(
        COSINE | {"warmup": 0.04, "final": 0.01}, 1000, total=1000
    )
    assert rates(COSINE, 40, total=1000)[-1] == 0.5


def test_a_run_without_a_warm_up_starts_at_the_top() -> None:
    assert rates(COSINE | {"warmup": 0.0}, 1, total=50) == [0.5]


def test_each_group_follows_the_curve_of_its_own_rate() -> None:
    optim = optimizer(0.5, 0.01)
    scheduler = WarmupCosine(optim, total_steps=10, warmup=0.5)
    for step in range(10):
        head, encoder = (group["lr"] for group in optim.param_groups)
        assert head == pytest.approx(50 * encoder)
        assert head == pytest.approx(0.5 * scheduler.factor(step))
        optim.step()
        scheduler.step()


def test_a_resumed_run_goes_on_with_its_own_curve() -> None:
    """And so with the same rates where nothing was changed."""
    first = optimizer()
    scheduler = WarmupCosine(first, total_steps=20)
    for _ in range(8):
        first.step()
        scheduler.step()
    for total in (20, 40):
        resumed = optimizer()
        again = WarmupCosine(resumed, total_steps=total)
        again.load_state_dict(scheduler.state_dict())
        resumed.load_state_dict(first.state_dict())
        resumed.step()
        again.step()
        expected = rates(COSINE, 10, total=total)[9]
        assert resumed.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_constant_rate_stays() -> None:
    spec = {"_target_": f"{Constant.__module__}.Constant"}
    assert rates(spec, 5, total=3) == [0.5] * 5


def test_any_scheduler_of_torchs_is_taken_by_its_path() -> None:
    path = "torch.optim.lr_scheduler"
    spec = {"_target_": f"{path}.StepLR", "step_size": 2, "gamma": 0.1}
    assert rates(spec, 5, total=9) == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
    spec = {"_target_": f"{path}.OneCycleLR", "max_lr": 0.5, "cycle_momentum": False}
    one_cycle = rates(spec, 9, total=9)
    assert max(one_cycle) == pytest.approx(0.5, rel=0.01)  # it was told the number of steps
    assert one_cycle[-1] < one_cycle[0] < 0.1


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (COSINE | {"warmup": 2}, ["scheduler.warmup=2", "0 and 1"]),
        (COSINE | {"final": -0.1}, ["scheduler.final=-0.1", "0 and 1"]),
        (COSINE | {"warmpu": 0.1}, ["scheduler.warmpu", "did you mean warmup?"]),
        (COSINE | {"total_steps": 9}, ["scheduler.total_steps", "no such setting"]),
        ({"_target_": "torch.optim.AdamW"}, ["scheduler._target_", "not a LRScheduler"]),
        ({"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, ["needs a score"]),
        ({"_target_": "torch.optim.lr_scheduler.StepLR"}, ["scheduler.step_size is missing"]),
    ],
)
def test_a_mistake_is_one_sentence(spec: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(CaptioningError) as error:
        build_scheduler(spec, optimizer(), 10)
    assert all(part in str(error.value) for part in parts), error.value

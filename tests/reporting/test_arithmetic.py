"""The record of a run's arithmetic."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from captioning.reporting import arithmetic
from captioning.reporting.arithmetic import Arithmetic, device_name
from captioning.reporting.results import Model, Results, read_results, write_results


def made(**changes: object) -> Arithmetic:
    given = {
        "precision": "bf16-mixed", "device": "cpu", "backend": "auto",
        "ops": {"attention": "c", "lstm_cell": "c", "topk": "torch"}, "threads": 2,
    }  # fmt: skip
    return Arithmetic.of(**(given | changes))


def test_what_was_computed_survives_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Intel(R) Xeon(R) 6975P\n")
    monkeypatch.setattr(arithmetic, "_CPU_INFO", tmp_path / "cpuinfo")
    content = {
        "name": "run", "command": "", "config": {}, "versions": {}, "commit": None, "seconds": {},
        "data": {"name": "d", "fingerprint": "f", "images": {}}, "scores": {}, "free_running": True,
    }  # fmt: skip
    write_results(
        tmp_path / "results.json", Results.model_validate(content | {"arithmetic": made()})
    )
    assert json.loads((tmp_path / "results.json").read_text())["arithmetic"] == {
        "precision": "bf16-mixed",
        "device": "cpu: Intel(R) Xeon(R) 6975P",
        "backend": {
            "asked": "auto", "ops": {"attention": "c", "lstm_cell": "c", "topk": "torch"},
        },
        "threads": 2,
    }  # fmt: skip
    read = read_results(tmp_path / "results.json")
    assert read.arithmetic_texts == {
        "precision": "bf16-mixed",
        "device": "cpu: Intel(R) Xeon(R) 6975P",
        "backend": "c (attention lstm_cell), torch (topk)",
        "threads": "2",
    }


def test_one_implementation_of_all_ops_is_named_alone() -> None:
    assert made(ops={"a": "torch", "b": "torch"}, backend="torch").backend.label == "torch"
    assert made(ops={}, backend="native").backend.label == "native"


@pytest.mark.parametrize("changes", [{"threads": 0}, {"ops": {"a": "numpy"}}, {"precision": ""}])
def test_what_cannot_be_true_is_not_recorded(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        made(**changes)


def test_a_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name("cpu").startswith("cpu: ")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H100 ({device})")
    assert device_name("cuda:1") == "cuda: NVIDIA H100 (cuda:1)"
    assert device_name("mps:0") == "mps"
    monkeypatch.setattr(arithmetic, "_CPU_INFO", tmp_path / "absent")
    assert len(device_name("cpu")) > len("cpu: ")


def test_parameters_are_counted_by_part_and_shared_ones_once() -> None:
    encoder, decoder = torch.nn.Linear(3, 2), torch.nn.Linear(2, 4, bias=False)
    objective = torch.nn.Linear(2, 4, bias=False)
    objective.weight = decoder.weight
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    model = Model.of("lstm", {"encoder": encoder, "decoder": decoder, "objective": objective})
    assert model.parameters == {"encoder": 8, "decoder": 8, "objective": 8}
    assert model.trainable == 8

"""Files of weights, and what a fingerprint sees."""

import pickle
from pathlib import Path

import pytest
import torch
from small_weights import STATE, Hostile, published

from captioning.support.errors import CaptioningError
from captioning.support.state_dicts import State, fingerprint, load_file, random_state


def load(path: Path) -> State:
    return load_file(path, "net", STATE, ("classifier.",))


def test_a_file_may_hold_the_whole_model_or_its_features_alone(tmp_path: Path) -> None:
    whole, alone = tmp_path / "whole.pth", tmp_path / "alone.pth"
    whole.write_bytes(published(STATE))
    torch.save({key.removeprefix("features."): value for key, value in STATE.items()}, alone)
    prints = {fingerprint("net", load(path)) for path in (whole, alone)}
    assert prints == {fingerprint("net", STATE)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"features.0.weight": STATE["features.0.weight"]}, r"another network.*features\.0\.bias"),
        ({**STATE, "features.2.weight": torch.ones(1)}, r"another network.*features\.2\.weight"),
        ({**STATE, "features.0.bias": torch.ones(3)}, r"features\.0\.bias is \(3,\), not \(2,\)"),
        ({"state": 1}, "not a state dict"),
        (STATE["features.0.bias"], "not a state dict"),
    ],
)
def test_a_file_that_does_not_fit_is_told_by_name(
    tmp_path: Path, content: object, words: str
) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    with pytest.raises(CaptioningError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not a state dict", pickle.dumps(Hostile())])
def test_a_file_that_is_no_state_dict_is_told_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    with pytest.raises(CaptioningError, match=r"file\.pth cannot be read"):
        load(path)


def test_batch_norm_counters_are_optional_and_without_effect(tmp_path: Path) -> None:
    expected = {"bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(0)}
    path = tmp_path / "old.pth"
    torch.save({"bn.weight": torch.ones(2)}, path)
    state = load_file(path, "net", expected, ())
    assert state["bn.num_batches_tracked"].dtype == torch.int64
    counted = {**state, "bn.num_batches_tracked": torch.tensor(9)}
    assert fingerprint("net", state) == fingerprint("net", counted)


def test_random_weights_leave_constants_as_they_are() -> None:
    expected = {"table": torch.tensor([[3, 1], [2, 0]]), "weight": torch.empty(2, 2, device="meta")}
    state = random_state(expected)
    assert state["table"].tolist() == [[3, 1], [2, 0]]
    assert state["weight"].abs().min() > 0


def test_the_fingerprint_sees_names_shapes_and_values() -> None:
    changes = [
        fingerprint("net", STATE),
        fingerprint("other", STATE),
        fingerprint("net", {**STATE, "features.0.bias": torch.tensor([1.0, 2.5])}),
        fingerprint("net", {**STATE, "features.0.bias": torch.tensor([[1.0, 2.0]])}),
        fingerprint("net", {"features.0.weight": STATE["features.0.weight"]}),
    ]
    assert len(set(changes)) == len(changes)
    assert fingerprint("net", dict(reversed(STATE.items()))) == changes[0]

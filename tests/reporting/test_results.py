"""``results.json``: what is written is read again, and what is wrong is told."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from captioning.reporting.results import Results, read_results, write_results
from captioning.support.errors import CaptioningError

# A results file as a reader of the documentation would write it by hand.
EXAMPLE = {
    "schema": 3,
    "name": "attn_lstm",
    "created": "2026-11-23T05:49:53Z",
    "command": "python train.py model=attn_lstm",
    "config": {"seed": 0, "model": {"dropout": 0.5, "dims": [512, None]}},
    "data": {
        "name": "flickr8k",
        "fingerprint": "abc123",
        "images": {"train": 6000, "dev": 1000, "test": 1000},
        "references": {"test": "fed987"},
        "tokenization": "stanford-corenlp-3.4.1/1",
    },
    "vocabulary": {"size": 2548, "fingerprint": "def456"},
    "encoder": {
        "name": "vgg16",
        "fingerprint": "789abc",
        "weights_source": "torch hub cache",
        "resize": "crop",
    },
    "model": {
        "name": "attn_lstm",
        "trainable": 12345678,
        "parameters": {"encoder": 7635264, "decoder": 12345600, "objective": 78},
    },
    "arithmetic": {
        "precision": "bf16-mixed",
        "device": "cpu: Intel Xeon",
        "backend": {"asked": "auto", "ops": {"attention": "c", "topk": "torch"}},
        "threads": 2,
    },
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "free_running": True,
    "training": None,
    "views": {"train": ["original", "flip"], "evaluation": ["original"]},
    "reward": "STANDARD_wInit+Cider-D[n4,s6.0]+average[nspi5]",
    "leave_one_out": None,
    "own_code": {"my.Decoder": "0123456789ab"},
    "commit": None,
    "seconds": {"train": 1900, "test": 61.5},
    "scores": {"dev": {"CIDEr": 0.488}, "test": {"BLEU-1": 0.603, "CIDEr": 1.2, "length": 12.5}},
    "metrics": {"length": {"highest": 20.0, "higher_is_better": False}},
    "intervals": {"test": {"CIDEr": [1.1, 1.3]}},
    "language": {
        "test": {
            "distinct_1": 0.05,
            "distinct_2": 0.2,
            "vocabulary": 480,
            "vocabulary_share": 0.19,
            "length": 10.2,
            "novel": 0.7,
            "unknown": None,
            "bad_endings": 0.02,
        }
    },
    "objects": {
        "test": {
            "captions": 100,
            "right": 0.9,
            "complete": 0.8,
            "words": 180,
            "attention_inside": 0.6,
            "peak_inside": 0.9,
            "box_share": 0.07,
        }
    },
    "decoding": {"name": "beam", "beam_size": 5, "length_normalisation": 0.7},
}


def changed(path: str, value: object) -> dict[str, object]:
    """The example with one field set, or removed where ``value`` is ``...``."""
    example = json.loads(json.dumps(EXAMPLE))
    *parents, key = path.split(".")
    node = example
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[key]
    else:
        node[key] = value
    return example


def results_of(**fields: object) -> Results:
    """The example as a run makes it, which leaves the time to the clock."""
    example = {key: value for key, value in EXAMPLE.items() if key != "created"}
    return Results.model_validate_json(json.dumps(example | fields))


def write(folder: Path, content: object) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_file_survives_reading_and_writing_unchanged(tmp_path: Path) -> None:
    results = read_results(write(tmp_path, EXAMPLE))
    write_results(tmp_path / "new" / "results.json", results)
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == EXAMPLE
    assert results.data.images["test"] == 1000
    assert results.scores["test"]["CIDEr"] == 1.2
    assert results.created == datetime(2026, 11, 23, 5, 49, 53, tzinfo=UTC)


def test_scores_keep_every_digit(tmp_path: Path) -> None:
    score = 0.1 + 0.2
    results = read_results(write(tmp_path, changed("scores.test.CIDEr", score)))
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json").scores["test"]["CIDEr"] == score


def test_new_results_carry_the_time_in_utc() -> None:
    results = results_of()
    assert results.created.utcoffset().total_seconds() == 0
    assert abs((datetime.now(UTC) - results.created).total_seconds()) < 60


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("name", ..., "`name`"),
        ("schema", 4, "`schema`: this version reads schemas 1 to 3"),
        ("arithmetic.threads", 0, "`arithmetic.threads`"),
        ("arithmetic.backend.ops.attention", "fortran", "`arithmetic.backend.ops.attention`"),
        ("model.trainable", ..., "`model.trainable`"),
        ("metrics.length.highest", 0.0, "`metrics.length.highest`"),
        ("metrics.length", ..., "`scores`: test length is not among BLEU-1"),
        ("scores.test.length", 21.0, "`scores`: test length is 21"),
        ("data.fingerprint", ..., "`data.fingerprint`"),
        ("data.images.test", -1, "`data.images.test`"),
        ("vocabulary.size", "2548", "`vocabulary.size`"),
        ("model.parametres", 3, "`model.parametres`"),
        ("created", "2026-11-23T05:49:53", "`created`"),
        ("decoding.name", ..., "`decoding.name`"),
        ("scores.test.CIDEr", None, "`scores.test.CIDEr`"),
        ("scores.test.CIDEr", float("nan"), "`scores.test.CIDEr`"),
        ("scores.test.CIDEr", 52.6, "`scores`: test CIDEr is 52.6"),
        ("scores.test.BLEU-4", 20.5, "`scores`: test BLEU-4 is 20.5"),
        ("scores.test.bleu-4", 0.2, "`scores`: test bleu-4 is not among BLEU-1"),
    ],
)
def test_wrong_field_is_named_in_one_sentence(
    tmp_path: Path, path: str, value: object, named: str
) -> None:
    file = write(tmp_path, changed(path, value))
    with pytest.raises(CaptioningError) as caught:
        read_results(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert named in message
    assert "\n" not in message


def test_what_was_not_decoded_freely_cannot_be_read(tmp_path: Path) -> None:
    for value, said in ((False, "with teacher forcing"), (..., "does not say how")):
        file = write(tmp_path, changed("free_running", value))
        with pytest.raises(CaptioningError, match=rf"results\.json: .*{said}"):
            read_results(file)


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They lack these fields; the package that wrote them never scored but free decoding."""
    old = changed("free_running", ...)
    old["versions"]["captioning"] = "0.1.0"
    for key in ("training", "intervals", "language", "objects"):
        del old[key]
    for key in ("references", "tokenization"):
        del old["data"][key]
    results = read_results(write(tmp_path, old))
    assert results.seed == 0
    assert results.data.references == {}


COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "results").rglob("results.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_files_are_read_and_written_in_the_present_schema(
    path: Path, tmp_path: Path
) -> None:
    old = json.loads(path.read_text())
    results = read_results(path)
    assert results.scores == old["scores"]
    if old["schema"] == 1:
        assert results.model is not None
        assert (results.model.trainable, results.model.parameters) == (
            old["model"]["parameters"], {},
        )  # fmt: skip
        assert results.arithmetic is None
        assert results.arithmetic_texts == {
            "precision": "auto", "device": "auto", "backend": "auto", "threads": "unknown",
        }  # fmt: skip
    write_results(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == 3
    again = read_results(tmp_path / "results.json")
    assert again.model_dump(exclude={"schema_version"}) == results.model_dump(
        exclude={"schema_version"}
    )


def test_files_of_both_schemas_are_among_the_committed_ones() -> None:
    assert len(COMMITTED) >= 15
    assert 1 in {json.loads(path.read_text())["schema"] for path in COMMITTED}


def test_an_evaluation_knows_the_seed_and_the_settings_of_its_training() -> None:
    results = results_of(
        config={"ckpt": "best.ckpt", "decoding": {"beam_size": 3}},
        training={"seed": 7, "model": {"dropout": 0.3}, "decoding": {"beam_size": 5}},
    )
    assert results.seed == 7
    assert results.settings["model"] == {"dropout": 0.3}
    assert results.settings["decoding"] == {"beam_size": 3}


def test_results_on_the_scale_of_tables_cannot_be_made() -> None:
    with pytest.raises(ValidationError, match="test METEOR is 21"):
        results_of(scores={"test": {"METEOR": 21.0}})


@pytest.mark.parametrize(
    ("decoding", "label"),
    [
        ({"name": "beam", "beam_size": 5}, "beam 5"),
        ({"name": "greedy", "max_length": 20}, "greedy"),
    ],
)
def test_decoding_has_a_short_label(decoding: dict[str, object], label: str) -> None:
    assert results_of(decoding=decoding).decoding.label == label

"""Text, JSON and YAML of strangers: their content, or one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioning.reporting.per_image import read_captions, read_statistics
from captioning.reporting.published import read_published
from captioning.reporting.results import read_results
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_document, load_json, load_lines, load_yaml
from captioning.sweeps.jobs import read_failure, read_job


def refused(read: Callable[[Path], Any], path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CaptioningError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) <= 1000
    return message


def test_other_encodings_are_named(tmp_path: Path) -> None:
    for encoding in ("UTF-16", "UTF-32"):
        data = "a dog\n".encode(encoding)
        assert f"this is {encoding}" in refused(load_document, tmp_path / "f", data)
    assert "NUL" in refused(load_document, tmp_path / "f", "a dog\n".encode("utf-16-le"))
    assert "f:2: not UTF-8" in refused(load_document, tmp_path / "f", "a\ncafé".encode("latin-1"))


def test_line_ends_of_old_macs_are_named(tmp_path: Path) -> None:
    assert "old Macs" in refused(load_lines, tmp_path / "f", "a dog\ra cat\r")
    (tmp_path / "f").write_bytes(b"a dog\r\na\rcat\n")
    assert load_lines(tmp_path / "f") == ["a dog", "a\rcat", ""]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": \n}', "f:2: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "more than 4,300 digits"),
        ("", "f:1: not JSON"),
    ],
)
def test_json_that_cannot_be_read_is_told_with_its_line(
    tmp_path: Path, content: str, says: str
) -> None:
    assert says in refused(load_json, tmp_path / "f", content)


@pytest.mark.parametrize(
    "value",
    ["2026-02-30", "!!python/name:os.system", "!!int ''", "!!binary x", "[" * 2000, "9" * 5000,
     "&a [*a, *b]", "{? [a]: b}"],
)  # fmt: skip
def test_dates_and_tags_in_yaml_are_refused(tmp_path: Path, value: str) -> None:
    assert "neither YAML nor JSON" in refused(load_yaml, tmp_path / "f", f"- name: {value}\n")
    refused(read_published, tmp_path / "f", f"- name: {value}\n")


def test_a_date_is_no_text_in_published_results(tmp_path: Path) -> None:
    assert "entry 1, `name`" in refused(
        read_published, tmp_path / "f", "- {name: 2015-02-10, source: x}\n"
    )


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, '{"overrides": 5}', "\0", "[]"])
@pytest.mark.parametrize(("name", "read"), [("job.json", read_job), ("failed.json", read_failure)])
def test_records_of_jobs_are_told_with_the_remedy(
    tmp_path: Path, name: str, read: Callable[[Path], Any], content: str
) -> None:
    assert "delete" in refused(lambda path: read(path.parent), tmp_path / name, content)


@pytest.mark.parametrize("read", [read_captions, read_results, read_statistics])
def test_a_message_is_never_longer_than_a_screen(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    refused(read, tmp_path / "f", '{"' + "x\x1b[31m" * 50_000 + '": 1}')


def test_a_message_keeps_its_beginning_and_its_remedy() -> None:
    message = str(CaptioningError(f"file.txt:3: {'x' * 5000}\n\x1b[31m; delete it."))
    assert message.startswith("file.txt:3: x")
    assert message.endswith("; delete it.")
    assert message.isprintable()
    assert len(message) <= 1000


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"nothing\.txt"):
        load_document(tmp_path / "nothing.txt")

"""The files of a feature store: damage, kills and power failures."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from tiny_store import OPTIONS, Tiny, builder, contents, without_checksums

from captioning.data.features.building import build_store
from captioning.data.features.digests import image_digests
from captioning.data.features.store import FeatureStore
from captioning.support.errors import CaptioningError


@pytest.mark.parametrize("end", [b"\xff" * 16, b""])
def test_a_row_without_a_checksum_that_is_no_grid_is_told(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], end: bytes
) -> None:
    """Its places are beyond the grid, or it has no whole number of them."""
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    index = store.folder / "index.txt"
    without_checksums(index)
    if end:
        with (store.folder / "grids.bin").open("r+b") as file:
            file.seek(32)
            file.write(end)
    else:
        index.write_text(index.read_text().replace(" 48", " 47"))
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    with pytest.raises(CaptioningError, match=r"0\.png is invalid.*delete that folder"):
        store.gather(["0.png"])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_flipped_bit_is_never_read_and_its_row_alone_is_computed_anew(
    tmp_path: Path,
    tiny: Tiny,
    images: list[tuple[str, Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    whole = store.gather(store.ids)
    for bit in range(2 * 48 * 8, 3 * 48 * 8, 5):  # of the third of five rows
        flip(store.folder / "grids.bin", bit)
        with pytest.raises(CaptioningError, match=r"grids\.bin: .* grid of 2\.png is damaged: run"):
            store.gather(["2.png"])
        assert store.gather(["1.png", "3.png"]).equal(whole[[1, 3]])
        flip(store.folder / "grids.bin", bit)
    flip(store.folder / "grids.bin", 2 * 48 * 8)
    Tiny.encoded.clear()
    again = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert Tiny.encoded == [1]
    assert again.gather(again.ids).equal(whole)
    said = "grids.bin: 1 stored grids are damaged, and are computed anew: that of"
    assert f"{said} {images[2][1]}\n" in caplog.text
    Tiny.encoded.clear()
    build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert Tiny.encoded == []


@pytest.mark.parametrize("name", ["grids.bin", "index.txt"])
def test_wherever_a_bit_is_flipped_a_build_gives_the_right_grids_or_says_why_not(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], name: str
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    whole, files = store.gather(store.ids), contents(store)
    for bit in range(3, 8 * len(files[name]), 101):
        flip(store.folder / name, bit)
        with suppress(CaptioningError):
            again = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
            assert again.gather(again.ids).equal(whole)
        for each, content in files.items():
            (store.folder / each).write_bytes(content)


def test_the_missing_end_of_a_store_is_computed_anew(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    whole = store.gather(store.ids)
    os.truncate(store.folder / "grids.bin", 4 * 48 - 1)
    Tiny.encoded.clear()
    again = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert Tiny.encoded == [2]
    assert again.gather(again.ids).equal(whole)


def test_a_store_of_an_earlier_version_is_read_with_a_sentence(
    tmp_path: Path,
    tiny: Tiny,
    images: list[tuple[str, Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    store = build_store(tmp_path / "stores", tiny, images[:3], **OPTIONS)
    assert "earlier version" not in caplog.text
    whole = store.gather(store.ids)
    without_checksums(store.folder / "index.txt")
    Tiny.encoded.clear()
    again = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert sum(Tiny.encoded) == 2
    assert again.gather(store.ids).equal(whole)
    assert f"3 grids in {store.folder} were stored by an earlier version" in caplog.text


def test_a_killed_build_goes_on_where_it_was(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    with builder(tmp_path / "stores", tmp_path / "images", seconds=0.5) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (folder,) = (tmp_path / "stores").glob("tiny-*")
    finished = len((folder / "index.txt").read_text().splitlines())
    assert 0 < finished < 5
    # What a kill between the numbers and their line, and inside a line, would leave behind.
    with (folder / "grids.bin").open("ab") as file:
        file.write(b"\x01" * 45)
    with (folder / "index.txt").open("a") as file:
        file.write("0123abc")
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert sum(Tiny.encoded) == 5 - finished
    whole = build_store(tmp_path / "uninterrupted", tiny, images, **OPTIONS)
    assert contents(store) == contents(whole)


def test_at_no_moment_the_index_names_numbers_that_are_not_there(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    """The files as they are before each line of the code that appends, where a kill may come."""
    whole = build_store(tmp_path / "whole", tiny, images, **OPTIONS)
    numbers = {image: whole.grid(image) for image in whole.ids}
    digests = dict(
        zip(whole.ids, image_digests([p for _, p in images], tmp_path / "d.json"), strict=True)
    )
    store = tmp_path / "stores"
    named: list[int] = []
    written: list[int] = []

    def check() -> None:
        for folder in store.glob("tiny-*"):
            index = folder / "index.txt"
            lines = index.read_text().splitlines(keepends=True) if index.exists() else []
            complete = {line.split()[0] for line in lines if line.endswith("\n")}
            known = {image: digest for image, digest in digests.items() if digest in complete}
            if known:
                opened = FeatureStore(folder, known)
                for image in known:
                    np.testing.assert_array_equal(opened.grid(image), numbers[image])
            named.append(len(known))
            rows = folder / "grids.bin"
            written.append(rows.stat().st_size if rows.exists() else 0)

    def each_line(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name != "append_rows":
            return None
        if event == "line":
            check()
        return each_line

    before = sys.gettrace()
    sys.settrace(each_line)
    try:
        build_store(store, tiny, images, **OPTIONS)
    finally:
        sys.settrace(before)
    assert set(named) == {0, 2, 4, 5}
    # Between the numbers of a batch and their lines there is a moment with the numbers alone.
    assert any(n == 0 and size > 0 for n, size in zip(named, written, strict=True))


def test_the_numbers_are_on_the_disk_before_the_index_names_them(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, after a power failure, the disk could have the later write and not the earlier."""
    synced: list[tuple[int, int]] = []

    def fsync(file: int, really: Callable[[int], None] = os.fsync) -> None:
        really(file)
        for grids in (tmp_path / "stores").glob("tiny-*/grids.bin"):
            if os.path.samestat(os.fstat(file), grids.stat()):
                index = grids.with_name("index.txt")
                lines = len(index.read_text().splitlines()) if index.exists() else 0
                synced.append((grids.stat().st_size, lines))

    monkeypatch.setattr(os, "fsync", fsync)
    build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    # Batches of 2, 2 and 1 images, whose grids of 16 numbers take 48 bytes each.
    assert synced == [(2 * 48, 0), (4 * 48, 2), (5 * 48, 4)]

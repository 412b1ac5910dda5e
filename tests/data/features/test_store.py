"""The feature store, over a network of one convolution.

Run as a script, this file builds a store slowly, for the tests that kill or race a builder.
"""

import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captioning.data.features.digests import image_digests
from captioning.data.features.store import FeatureStore, build_store, pack, unpack
from captioning.data.images import load_rgb
from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError

OPTIONS: dict[str, Any] = {
    "batch_size": 2,
    "device": "cpu",
    "precision": "fp32",
    "progress": False,
}


class Tiny(GridEncoder):
    """A 2 x 2 grid of 4 channels; counts the images it is given, and can be slow."""

    name = "tiny"
    channels = 4
    stride = 8
    encoded: ClassVar[list[int]] = []
    seconds: ClassVar[float] = 0.0

    def build(self) -> None:
        self.conv = nn.Conv2d(3, 4, kernel_size=8, stride=8)

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        self.encoded.append(len(images))
        time.sleep(self.seconds)
        result: Tensor = self.conv(images)
        return result

    def last_block(self) -> list[nn.Parameter]:
        return list(self.conv.parameters())


@pytest.fixture
def tiny() -> Tiny:
    Tiny.encoded.clear()
    return Tiny(weights="random", image_size=16)


def make_images(folder: Path, count: int = 5) -> list[tuple[str, Path]]:
    folder.mkdir()
    draw = np.random.default_rng(3)
    images = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        images.append((path.name, path))
    return images


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, Path]]:
    return make_images(tmp_path / "images")


@contextmanager
def builder(directory: Path, images: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that builds a store of these images, and pauses after every batch."""
    command = [sys.executable, __file__, str(directory), str(images), str(seconds)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in directory.glob("tiny-*/index.txt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def contents(store: FeatureStore) -> dict[str, bytes]:
    return {name: (store.folder / name).read_bytes() for name in ("grids.bin", "index.txt")}


def test_rows_are_the_encoders_output(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert (len(store), store.shape, store.notes) == (5, (4, 4), [])
    assert store.ids == [name for name, _ in images]
    assert Tiny.encoded == [2, 2, 1]
    for name, path in images:
        with torch.inference_mode():
            expected = tiny(tiny.preprocessing(load_rgb(path))[None])[0]
        assert store.grid(name).dtype == np.float16
        np.testing.assert_allclose(store.grid(name), expected.half(), rtol=2e-3, atol=2e-3)
    gathered = store.gather(["3.png", "0.png", "3.png"])
    assert gathered.dtype == torch.float16
    np.testing.assert_array_equal(gathered[1], store.grid("0.png"))
    np.testing.assert_array_equal(gathered[0], gathered[2])
    gathered.zero_()  # a copy: the file is not touched
    assert store.gather(["3.png"]).abs().sum() > 0


def test_a_store_that_is_cut_while_it_is_open_gives_no_wrong_numbers(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    file = store.folder / "grids.bin"
    os.truncate(file, file.stat().st_size - 1)
    assert store.gather([images[0][0]]).shape == (1, 4, 4)
    with pytest.raises(CaptioningError, match=r"grids\.bin: the stored grid of 4\.png is damaged"):
        store.gather([images[-1][0]])


@given(
    grid=arrays(
        np.float16,
        st.tuples(st.integers(1, 5), st.integers(1, 700)),
        elements=st.floats(width=16, allow_nan=True),
        fill=st.just(0.0),
    )
)
def test_what_is_packed_comes_back(grid: np.ndarray) -> None:
    packed = pack(grid)
    back = np.zeros(grid.size, np.float16)
    unpack(packed, back)
    np.testing.assert_array_equal(back.reshape(grid.shape), grid)
    assert len(packed) <= 3 * (np.count_nonzero(grid) + grid.size // 255)


def test_a_row_is_as_the_modules_documentation_has_it() -> None:
    grid = np.zeros((2, 300), np.float16)
    grid[0, 1], grid[1, 4] = 1.0, -2.0  # the numbers 1 and 304 of 600
    numbers = np.array([1.0, 0.0, -2.0], "<f2").tobytes()
    assert pack(grid) == numbers + bytes([2, 255, 48])
    assert pack(np.zeros((2, 300), np.float16)) == b""


def without_checksums(index: Path) -> None:
    """Make the index one that an earlier version wrote."""
    lines = [line.rpartition(" ")[0] for line in index.read_text().splitlines()]
    index.write_text("".join(f"{line}\n" for line in lines))


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


def test_a_second_build_finds_everything(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    first = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    before = contents(first)
    Tiny.encoded.clear()
    # Another object, other names, other order: the content counts.
    others = [(f"other {name}", path) for name, path in reversed(images)]
    again = build_store(
        tmp_path / "stores", Tiny(weights="random", image_size=16), others, **OPTIONS
    )
    assert Tiny.encoded == []
    assert contents(again) == before
    np.testing.assert_array_equal(again.grid("other 2.png"), first.grid("2.png"))


def test_a_complete_store_opens_without_a_write(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    (store.folder / "lock").unlink()
    build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert not (store.folder / "lock").exists()


def test_only_a_changed_or_new_image_is_computed(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    before = build_store(tmp_path / "stores", tiny, images, **OPTIONS).gather(["1.png"])
    Image.new("RGB", (20, 20), "blue").save(images[1][1])
    new = tmp_path / "new.png"
    Image.new("RGB", (20, 20), "green").save(new)
    Tiny.encoded.clear()
    store = build_store(tmp_path / "stores", tiny, [*images, ("new", new)], **OPTIONS)
    assert Tiny.encoded == [2]
    assert not store.gather(["1.png"]).equal(before)
    with torch.inference_mode():
        expected = tiny(tiny.preprocessing(load_rgb(new))[None])[0].half()
    np.testing.assert_allclose(store.grid("new"), expected, rtol=2e-3, atol=2e-3)


def test_other_weights_size_or_resizing_are_another_store(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({key: value + 1 for key, value in tiny.state_dict().items()}, weights)
    encoders = [
        tiny,
        Tiny(weights="random", image_size=16, resize="crop"),
        Tiny(weights="random", image_size=24),
        Tiny(weights=str(weights), image_size=16),
    ]
    stores = [build_store(tmp_path / "stores", encoder, images, **OPTIONS) for encoder in encoders]
    assert len({store.folder for store in stores}) == 4
    assert sum(Tiny.encoded) == 4 * 5
    assert stores[2].shape == (9, 4)
    assert not stores[0].gather(["0.png"]).equal(stores[3].gather(["0.png"]))


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
        if frame.f_code.co_name != "_append":
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


def test_of_two_processes_one_computes_and_the_other_waits(
    tmp_path: Path,
    tiny: Tiny,
    images: list[tuple[str, Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with builder(tmp_path / "stores", tmp_path / "images", seconds=0.5) as process:
        store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
        assert process.wait() == 0
    assert Tiny.encoded == []
    assert "Waiting for another process" in caplog.text
    assert len(store) == 5
    assert len((store.folder / "index.txt").read_text().splitlines()) == 5


def test_one_picture_under_two_names_has_one_row(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(images[2][1], copy)
    store = build_store(tmp_path / "stores", tiny, [*images, ("copy.png", copy)], **OPTIONS)
    assert len(store) == 6
    assert sum(Tiny.encoded) == 5
    assert store.notes == ["copy.png is the same picture as 2.png."]
    np.testing.assert_array_equal(store.grid("copy.png"), store.grid("2.png"))


def test_a_picture_in_two_parts_of_a_store_is_noted(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a picture of the training split that is in the test split too."""
    copy = tmp_path / "copy.png"
    shutil.copy(images[2][1], copy)
    store = build_store(tmp_path / "stores", tiny, images[:3], **OPTIONS)
    others = [*images[3:], ("copy.png", copy)]
    store.extend(build_store(tmp_path / "stores", tiny, others, **OPTIONS))
    assert store.notes == ["copy.png is the same picture as 2.png."]
    assert store.notes[0] in caplog.text
    assert store.ids == ["0.png", "1.png", "2.png", "3.png", "4.png", "copy.png"]
    together = build_store(tmp_path / "stores", tiny, [*images, ("copy.png", copy)], **OPTIONS)
    assert torch.equal(store.gather(store.ids), together.gather(store.ids))


@pytest.mark.parametrize("broken", ["truncated", "missing"])
def test_a_bad_image_is_an_error_or_left_out_by_name(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], broken: str
) -> None:
    path = images[3][1]
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:900])
    else:
        path.unlink()
    with pytest.raises(CaptioningError, match=r"3\.png.*skip_bad"):
        build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    store = build_store(tmp_path / "stores", tiny, images, skip_bad=True, **OPTIONS)
    assert store.ids == ["0.png", "1.png", "2.png", "4.png"]
    assert "3.png" not in store
    (note,) = store.notes
    assert note.startswith("3.png is left out: ")
    assert sum(Tiny.encoded) == 4  # none of it twice
    np.testing.assert_array_equal(
        store.grid("4.png"),
        build_store(tmp_path / "other", tiny, images[4:], **OPTIONS).grid("4.png"),
    )


def test_when_no_image_can_be_read_it_says_so(tmp_path: Path, tiny: Tiny) -> None:
    nowhere = [("a", tmp_path / "a.jpg")]
    with pytest.raises(CaptioningError, match=r"Not one of 1 images.*a\.jpg"):
        build_store(tmp_path / "stores", tiny, nowhere, skip_bad=True, **OPTIONS)
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(CaptioningError, match=r"Not one of 1 images.*a\.jpg"):
        build_store(tmp_path / "stores", tiny, nowhere, skip_bad=True, **OPTIONS)


def test_an_id_given_twice_is_an_error(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    with pytest.raises(CaptioningError, match="twice"):
        build_store(tmp_path / "stores", tiny, [*images, images[0]], **OPTIONS)


def test_a_damaged_store_is_told_with_the_remedy(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    good = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    files = {path.name: path.read_bytes() for path in good.folder.iterdir()}
    meta = json.loads(files["meta.json"])
    damages: dict[str, tuple[str, bytes | None]] = {
        "shorter": ("index.txt", files["index.txt"] + b"0" * 64 + b" 48\n"),
        "no grids.bin": ("grids.bin", None),
        "not a SHA-256": ("index.txt", b"garbage\n" + files["index.txt"]),
        "not text": ("index.txt", b"\xff\xfe\n"),
        "no meta.json": ("meta.json", None),
        "does not describe": ("meta.json", b"{"),
        "its meta.json does": ("meta.json", json.dumps({**meta, "channels": 2}).encode()),
    }
    for words, (name, content) in damages.items():
        if content is None:
            (good.folder / name).unlink()
        else:
            (good.folder / name).write_bytes(content)
        with pytest.raises(CaptioningError, match=words) as caught:
            build_store(tmp_path / "stores", tiny, images, **OPTIONS)
        assert f"{good.folder} is damaged" in str(caught.value)
        assert "delete that folder" in str(caught.value)
        (good.folder / name).write_bytes(files[name])
    shutil.rmtree(good.folder)
    assert len(build_store(tmp_path / "stores", tiny, images, **OPTIONS)) == 5


def test_grids_beyond_half_precision_are_an_error(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    weights = tmp_path / "huge.pth"
    torch.save({key: value * 1e6 for key, value in tiny.state_dict().items()}, weights)
    with pytest.raises(CaptioningError, match="half precision"):
        build_store(
            tmp_path / "stores", Tiny(weights=str(weights), image_size=16), images, **OPTIONS
        )


@pytest.mark.parametrize(
    ("option", "words"), [({"precision": "fp8"}, "fp8"), ({"device": "abacus"}, "abacus")]
)
def test_unknown_options_are_named(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], option: dict[str, str], words: str
) -> None:
    with pytest.raises(CaptioningError, match=words):
        build_store(tmp_path / "stores", tiny, images, **{**OPTIONS, **option})


def test_a_full_disk_is_told_with_the_first_batch(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=90))
    with pytest.raises(CaptioningError, match=r"needs some 0\.0 GB more"):
        build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert Tiny.encoded == [2]


def test_it_travels_to_the_workers_of_a_data_loader(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert len(pickle.dumps(store)) < 2000
    copy = pickle.loads(pickle.dumps(store))
    assert copy.gather(store.ids).equal(store.gather(store.ids))
    loader = DataLoader(
        store.ids,  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=store.gather,
        num_workers=1,
        multiprocessing_context="fork",
    )
    assert torch.cat(list(loader)).equal(store.gather(store.ids))


def test_the_arithmetic_is_noted_and_makes_little_difference(tmp_path: Path) -> None:
    from captioning.models.encoders.vgg16 import VGG16  # slow; the builder processes do without

    images = make_images(tmp_path / "images", count=3)
    encoder = VGG16(weights="random", image_size=64)
    grids = {}
    for precision in ("fp32", "bf16"):
        options = {**OPTIONS, "precision": precision}
        store = build_store(tmp_path / precision, encoder, images, **options)
        assert json.loads((store.folder / "meta.json").read_text())["precisions"] == [precision]
        grids[precision] = store.gather(store.ids).float().flatten(1)
    assert not grids["fp32"].equal(grids["bf16"])
    assert torch.cosine_similarity(grids["fp32"], grids["bf16"]).min() > 0.999

    more = [*images, *make_images(tmp_path / "more", count=4)[3:]]
    store = build_store(tmp_path / "fp32", encoder, more, **{**OPTIONS, "precision": "bf16"})
    assert json.loads((store.folder / "meta.json").read_text())["precisions"] == ["fp32", "bf16"]
    assert store.gather(["0.png"]).float().flatten(1).equal(grids["fp32"][:1])


def test_the_encoder_is_left_as_it_was(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    build_store(tmp_path / "stores", tiny, images, **{**OPTIONS, "precision": "bf16"})
    for key, value in tiny.state_dict().items():
        assert value.dtype == torch.float32
        assert value.equal(before[key])


def test_digests_are_sha256_and_a_known_file_is_not_read_again(tmp_path: Path) -> None:
    old, new, cache = tmp_path / "old", tmp_path / "new", tmp_path / "digests.json"
    for path, text in ((old, "one"), (new, "two")):
        path.write_text(text)
    os.utime(old, ns=(10**18, 10**18))
    expected = [hashlib.sha256(text).hexdigest() for text in (b"one", b"two")]
    assert image_digests([old, new], cache) == expected
    assert list(json.loads(cache.read_text())) == [str(old)]  # the other may still be changing

    # Same size and time: believed without reading. Another time: read.
    old.write_text("six")
    os.utime(old, ns=(10**18, 10**18))
    assert image_digests([old, new], cache) == expected
    os.utime(old, ns=(10**18 + 1, 10**18 + 1))
    assert image_digests([old], cache) == [hashlib.sha256(b"six").hexdigest()]


@pytest.mark.parametrize("damage", ["{", "[1]", '{"a": 1}', '{"a": [1, 2]}'])
def test_a_damaged_digest_file_is_only_a_cache(tmp_path: Path, damage: str) -> None:
    image, cache = tmp_path / "image", tmp_path / "digests.json"
    image.write_text("one")
    os.utime(image, ns=(10**18, 10**18))
    cache.write_text(damage)
    assert image_digests([image], cache) == [hashlib.sha256(b"one").hexdigest()]
    assert str(image) in json.loads(cache.read_text())


def test_a_file_changed_behind_its_time_stamp_is_no_wrong_row(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    path = images[0][1]
    os.utime(path, ns=(10**18, 10**18))
    image_digests([path], tmp_path / "stores" / "digests.json")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(CaptioningError, match=r"0\.png was changed"):
        build_store(tmp_path / "stores", tiny, images, **OPTIONS)


def test_real_photographs(tmp_path: Path, tiny: Tiny, flickr8k_mini: Path) -> None:
    photographs = sorted((flickr8k_mini / "Flicker8k_Dataset").glob("*.jpg"))
    store = build_store(tmp_path / "stores", tiny, [(p.name, p) for p in photographs], **OPTIONS)
    assert len(store) == 200
    # A number and its place: without a ReLU, nothing is zero.
    assert (store.folder / "grids.bin").stat().st_size == 200 * 4 * 4 * 3


if __name__ == "__main__":
    directory, folder, seconds = sys.argv[1:]
    Tiny.seconds = float(seconds)
    build_store(
        Path(directory),
        Tiny(weights="random", image_size=16),
        [(path.name, path) for path in sorted(Path(folder).glob("*.png"))],
        **OPTIONS,
    )

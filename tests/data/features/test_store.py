"""Reading the grids of a feature store."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_store import OPTIONS, Tiny
from torch.utils.data import DataLoader

from captioning.data.features.building import build_store
from captioning.data.images import load_rgb
from captioning.support.errors import CaptioningError


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


def test_real_photographs(tmp_path: Path, tiny: Tiny, flickr8k_mini: Path) -> None:
    photographs = sorted((flickr8k_mini / "Flicker8k_Dataset").glob("*.jpg"))
    store = build_store(tmp_path / "stores", tiny, [(p.name, p) for p in photographs], **OPTIONS)
    assert len(store) == 200
    # A number and its place: without a ReLU, nothing is zero.
    assert (store.folder / "grids.bin").stat().st_size == 200 * 4 * 4 * 3

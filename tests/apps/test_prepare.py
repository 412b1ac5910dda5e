from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from captioning.apps.prepare import main
from captioning.data.cleaning import Cleaner
from captioning.data.descriptions import load_descriptions, load_saved_descriptions
from captioning.data.vocabulary import Vocabulary


def test_the_command_writes_cleaned_captions_and_the_vocabulary_of_train(
    flickr8k_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--root", str(flickr8k_mini), "--out", str(out), "--min-count", "4"]
    assert main(options) == 0
    raw = load_descriptions(flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt")
    saved = load_saved_descriptions(out / "descriptions.txt")
    assert saved == {image: [Cleaner()(text) for text in texts] for image, texts in raw.items()}

    train = (flickr8k_mini / "Flickr8k_text" / "Flickr_8k.trainImages.txt").read_text().split()
    counts = Counter(word for image in train for text in saved[image] for word in text.split())
    frequent = {word for word, count in counts.items() if count >= 4}
    assert set(Vocabulary.load(out / "vocabulary.json").words) == frequent
    printed = capsys.readouterr().out
    for part in ("120 train, 40 dev, 40 test", "1,000 captions of 200 images", "note: "):
        assert part in printed
    assert f"{len(frequent):,} of {len(counts):,} training words, those that occur" in printed


def test_each_cleaning_step_can_be_chosen(flickr8k_mini: Path, tmp_path: Path) -> None:
    def words(*options: str) -> set[str]:
        arguments = ["--root", str(flickr8k_mini), "--out", str(tmp_path), "--min-count", "1"]
        assert main([*arguments, *options]) == 0
        return set(Vocabulary.load(tmp_path / "vocabulary.json").words)

    assert not {"A", "."} & words()
    assert {"a", "two", "2"} <= words()
    assert "A" in words("--keep-case")
    assert "." in words("--keep-punctuation")
    assert "a" not in words("--drop-one-letter-words")
    assert not any(char.isdigit() for word in words("--drop-numbers") for char in word)
    assert len(words("--max-size", "7")) == 7


def test_a_missing_image_stops_it_unless_skipped(
    flickr8k_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(flickr8k_mini / "Flickr8k_text", root / "Flickr8k_text")
    images = sorted((flickr8k_mini / "Flicker8k_Dataset").iterdir())
    (root / "Images").mkdir()
    for image in images[1:]:
        (root / "Images" / image.name).symlink_to(image)
    options = ["--root", str(root), "--out", str(out)]
    assert main(options) == 1
    error = capsys.readouterr().err
    assert images[0].name in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert main([*options, "--skip-bad"]) == 0
    assert images[0].name in capsys.readouterr().out


def test_run_as_a_module_it_fails_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "captioning", "prepare"]
    done = subprocess.run(
        [*command, "--root", str(tmp_path / "nowhere")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


def test_a_place_that_cannot_be_written_is_named(
    flickr8k_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--root", str(flickr8k_mini), "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err

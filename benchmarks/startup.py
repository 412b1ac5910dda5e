"""The time that ``train.py`` takes to print help or an error, and to start training."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Figure

ROOT = Path(__file__).resolve().parents[1]

# Commands that print an answer and end.
ANSWERS = {"--help": ["--help"], "--cfg job": ["--cfg", "job"], "a wrong key": ["model.hiden=3"]}


def command(*arguments: str) -> list[str]:
    """The command line ``python train.py ARGUMENTS``."""
    return [sys.executable, str(ROOT / "train.py"), *arguments]


def run(rounds: int) -> list[Figure]:
    """Time commands that only print something, and the start of training with a feature store."""
    figures = []
    for name, arguments in ANSWERS.items():
        taken = []
        for _ in range(max(3, rounds)):
            start = time.perf_counter()
            subprocess.run(command(*arguments), capture_output=True, check=False)
            taken.append(time.perf_counter() - start)
        figures.append(
            Figure(f"train.py: {name}", sorted(taken)[len(taken) // 2], "s", goal_value=1)
        )
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data")
        arguments = [
            f"data.root={data}", f"data.cache={folder}/cache", "encoder.weights=random",
            "data.min_count=1", "trainer.max_epochs=1", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        seconds_to_training(Path(folder), arguments)  # this first run creates the store
        figures.append(
            Figure(
                "train.py: to the first step", seconds_to_training(Path(folder), arguments), "s",
                goal_value=4,
            )
        )  # fmt: skip
    imports = [sys.executable, "-c", "import torch, torchvision, pytorch_lightning"]
    start = time.perf_counter()
    subprocess.run(imports, check=True, capture_output=True, cwd=ROOT)
    took = time.perf_counter() - start
    note = "importing torch, torchvision and pytorch-lightning, in the same run"
    return [*figures, Figure("imports of libraries alone", took, "s", note=note)]


def make_data(root: Path) -> Path:
    """Ten pictures in Kaggle's layout, with the lists of Flickr8k's splits."""
    images = root / "Images"
    images.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = ["image,caption"]
    for number in range(10):
        noise = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number}.jpg")
        lines += [f"{number}.jpg,a picture of noise number {word}" for word in "abcde"]
    for split, numbers in {"train": range(6), "dev": (6, 7), "test": (8, 9)}.items():
        names = "".join(f"{number}.jpg\n" for number in numbers)
        (root / f"Flickr_8k.{split}Images.txt").write_text(names)
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    return root


def seconds_to_training(folder: Path, arguments: list[str]) -> float:
    """The seconds until the log line right before the first step; the run is then killed."""
    environment = os.environ | {"WANDB_MODE": "disabled"}
    start = time.perf_counter()
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=folder, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "Training AttentionLSTM" in line:
                taken = time.perf_counter() - start
                process.kill()
                return taken
    raise RuntimeError("".join(seen))

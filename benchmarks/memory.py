"""The private memory of whole commands: training on Flickr8k and on COCO's size, and captioning.

Private memory is what the process alone has, without the files that the system caches and without
what it shares with others (Linux's ``smaps_rollup``). It is read ten times a second while the
command runs in a process of its own; its peak is reported.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.features import write_photographs, write_splits
from benchmarks.loading import make_grid, make_store
from benchmarks.measure import Figure
from benchmarks.startup import ROOT, command
from captioning.data.features.packed_grids import pack
from captioning.models.encoders.vgg16 import VGG16

FLICKR8K, COCO = 6000, 120_000  # training images
SCORED = 200  # images of the dev and of the test split
PHOTOGRAPHS = 1000
STEPS = 30  # training steps; the peak is reached within the first few
ROLLUP = Path("/proc/self/smaps_rollup")


def run(rounds: int) -> list[Figure]:
    """Measure each command once; on other systems than Linux, nothing is measured."""
    del rounds
    if not ROLLUP.exists():
        print(f"memory: this system has no {ROLLUP}; nothing is measured.")
        return []
    figures = [
        trained("Flickr8k's size", FLICKR8K, words=2600, zeros=0.92, goal=2),
        # Of grids with fewer numbers, 120,000 need no 3 GB of disk. They are not kept in memory.
        trained("COCO's size", COCO, words=10_000, zeros=0.999, goal=3),
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), PHOTOGRAPHS)
        script = [sys.executable, str(ROOT / "caption.py"), f"images={folder}"]
        peak, taken = peak_of(script)
    note = f"{taken:.0f} s"
    name = f"memory: captioning {PHOTOGRAPHS:,} photographs"
    return [*figures, Figure(name, peak, "GB", note=note, goal_value=1)]


def trained(
    name: str, images: int, words: int, zeros: float, goal: float, scored: int = SCORED
) -> Figure:
    """The peak of ``train.py`` on made-up data, with dev and test scores and the report."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_data(place, images, scored, words, zeros)
        arguments = [
            f"data.root={place}/data", f"data.cache={place}/cache", "encoder.weights=random",
            "trainer.max_epochs=1", f"trainer.limit_train_batches={STEPS}", "logger=csv",
            f"hydra.run.dir={place}/run",
        ]  # fmt: skip
        peak, taken = peak_of(command(*arguments))
    note = f"{images:,} images, {STEPS} steps, scores and report: {taken:.0f} s"
    return Figure(f"memory: training, {name}", peak, "GB", note=note, goal_value=goal)


def make_data(folder: Path, images: int, scored: int, words: int, zeros: float) -> None:
    """A data set in Kaggle's layout, and a feature store that has the grids of all its images.

    An image file contains its number, because nothing but its digest is read.
    """
    root = folder / "data"
    (root / "Images").mkdir(parents=True)
    features = folder / "cache" / "features"
    features.mkdir(parents=True)
    total = images + 2 * scored
    encoder = VGG16(weights="random")
    row = pack(make_grid(encoder, zeros))
    store = make_store(features, encoder, total, row)
    with (store.folder / "grids.bin").open("wb") as file:
        for _ in range(total):
            file.write(row)
    generator = np.random.default_rng(0)
    # Every word often enough for the vocabulary.
    drawn = generator.integers(words, size=(5 * total, 11))
    listed = [made_up_word(number) for number in range(words)]
    lines = ["image,caption"]
    for number in range(total):
        (root / "Images" / f"{number}.jpg").write_text(str(number))
        for places in drawn[5 * number : 5 * number + 5].tolist():
            lines.append(f"{number}.jpg,{' '.join(listed[place] for place in places)}")
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    write_splits(root, [f"{number}.jpg" for number in range(total)], (images, scored, scored))


def made_up_word(number: int) -> str:
    """A word of letters, another one for each number."""
    letters = ""
    for _ in range(4):
        number, place = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwxz"[place] + "aeiou"[place % 5]
    return letters


def peak_of(script: list[str]) -> tuple[float, float]:
    """The largest private memory of a command in GB, and the seconds that it took.

    Raises:
        RuntimeError: the command failed.
    """
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(script, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, private_bytes(process.pid))
                time.sleep(0.1)
        finally:
            process.kill()
        if process.wait() != 0:
            output.seek(0)
            raise RuntimeError(output.read().decode(errors="replace")[-2000:])
    return peak / 1e9, time.perf_counter() - start


def private_bytes(process: int | str = "self") -> int:
    """The private memory of a process; 0 if it has ended.

    Private pages that are not dirty belong to files: libraries that no other process uses at the
    moment, of which the end of a process reads a hundred megabytes.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

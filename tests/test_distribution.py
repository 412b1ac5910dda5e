"""The wheel, installed beside nothing but the libraries that it says it needs."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

SCORE = """
import sys
from captioning.metrics import CaptionScores, score_captions
hypotheses, references = {"1.jpg": "a dog runs"}, {"1.jpg": ["A dog runs.", "A dog."]}
metric = CaptionScores(references, ["BLEU"])
metric.update(list(hypotheses), list(hypotheses.values()))
scores = score_captions(hypotheses, references, ["BLEU"])
assert metric.compute()["BLEU-1"] == scores.corpus["BLEU-1"]
for module in ("captioning", "torch"):
    print(sys.modules[module].__file__)
unwanted = {"hydra", "omegaconf", "pytorch_lightning", "lightning_fabric", "flask", "ray", "wandb"}
print(sorted(unwanted & sys.modules.keys()))
"""

TINY = (
    "encoder.weights=random", "encoder.image_size=32", "trainer.accelerator=cpu", "backend=torch",
    "model.hidden_dim=16", "model.embed_dim=8", "model.attention_dim=8", "data.min_count=1",
    "trainer.max_epochs=1", "trainer.limit_train_batches=1", "decoding=greedy",
    "trainer.limit_test_batches=1", "data.workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy of what it is made of."""
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__")
    for folder in ("captioning", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


def needed(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Distribution]:
    """The installed distributions that one requires, and what these require in turn."""
    pending, seen = [(name, extras)], set()
    while pending:
        name, extras = pending.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        yield found
        for text in found.requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (*extras, "")):
                pending.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, as links, what the wheel requires without extras."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (metadata,) = packages.glob("captioning-*.dist-info")
    required = Distribution.at(metadata).requires or []
    base = [Requirement(text) for text in required if "extra ==" not in text]
    for requirement in base:
        assert requirement.specifier, f"{requirement} has no lowest version"
        for found in needed(canonicalize_name(requirement.name)):
            tops = {Path(file).parts[0] for file in found.files or [] if file.parts[0] != ".."}
            for top in tops - {"__pycache__"}:
                link = packages / top
                if not link.exists():
                    link.symlink_to(found.locate_file(top))  # type: ignore[arg-type]
    return folder


def in_clean(clean: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment, in a folder that has nothing of this checkout."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [clean / "bin" / command[0], *command[1:]],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**inherited, "CAPTIONING_CACHE": str(folder / "cache")},
    )  # fmt: skip


def test_scores_come_without_lightning_hydra_and_the_extras(clean: Path, tmp_path: Path) -> None:
    ended = in_clean(clean, tmp_path, "python", "-c", SCORE)
    assert ended.returncode == 0, ended.stderr
    ours, torch, imported = ended.stdout.splitlines()
    assert ours.startswith(str(clean))
    assert torch.startswith(str(clean))
    assert imported == "[]"
    names = ["ray", "wandb", "flask", "optuna", "transformers", "tensorboard", "pandas"]
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert in_clean(clean, tmp_path, "python", "-c", code).stdout == "[]\n"


def test_an_installed_package_trains_and_captions(
    clean: Path, drawn_pictures: Path, tmp_path: Path
) -> None:
    given = [f"data.root={drawn_pictures}", "hydra.run.dir=run", "trainer.precision=32-true", *TINY]
    trained = in_clean(clean, tmp_path, "captioning", "train", *given)
    assert trained.returncode == 0, trained.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["command"].startswith("captioning train data.root=")
    assert results["commit"] is None
    picture = drawn_pictures / "images" / "04.png"
    ckpt = "ckpt=run/checkpoints/best.ckpt"
    said = in_clean(clean, tmp_path, "captioning", "caption", ckpt, f"images={picture}")
    assert said.returncode == 0, said.stderr
    name, _, caption = said.stdout.strip().partition("\t")
    assert (name, bool(caption)) == (str(picture), True)


def test_a_library_of_an_extra_is_asked_for_in_a_sentence(clean: Path, tmp_path: Path) -> None:
    ended = in_clean(clean, tmp_path, "captioning", "demo", "ckpt=run/checkpoints/best.ckpt")
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: captioning demo needs the package flask: pip install 'captioning[demo]'\n"
    )

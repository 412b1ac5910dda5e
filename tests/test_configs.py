"""Every file under conf: each choice composes, and each key is a setting of some part."""

import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger

from captioning.apps.caption import CaptionSettings
from captioning.captioner import CrossEntropy, schedule_of
from captioning.data.datamodule import CaptionDataModule
from captioning.decoding import Decoding
from captioning.evaluation.captions_file import EvalSettings
from captioning.models.decoders.base import Decoder
from captioning.models.encoders.base import GridEncoder
from captioning.support.build import locate, validated
from captioning.support.errors import CaptioningError
from captioning.training.run import TrainSettings, own

CONF = Path(__file__).parent.parent / "conf"

SETTINGS: dict[str, tuple[type, list[str]]] = {
    "train": (TrainSettings, ["name=x", "data.root=x"]),  # Hydra knows the name in a running app
    "eval": (EvalSettings, ["ckpt=x", "data.root=x"]),
    "caption": (CaptionSettings, ["ckpt=x", "images=x"]),
}
"""For each script, what its own settings are, and what the user has to give."""

PARTS: dict[str, tuple[type, set[str]]] = {
    "data": (CaptionDataModule, {"seed", "vocabulary"}),
    "encoder": (GridEncoder, set()),
    "model": (Decoder, {"vocabulary_size", "channels"}),
    "objective": (CrossEntropy, set()),
    "optimizer": (torch.optim.Optimizer, {"params"}),
    "decoding": (Decoding, set()),
    "validation": (Decoding, set()),
    "trainer": (pl.Trainer, set()),
    "logger": (Logger, {"save_dir"}),
}
"""For each part of a configuration, what it describes, and the arguments that the program gives."""

REPLACED = {("trainer", "precision"): "auto", ("logger", "offline"): None}
"""Values that :mod:`captioning.training.run` replaces before it builds the part."""


def groups(script: str) -> list[str]:
    """The groups that a script chooses from, as its list of defaults names them."""
    defaults = yaml.safe_load((CONF / f"{script}.yaml").read_text())["defaults"]
    keys = [key for entry in defaults if entry != "_self_" for key in entry]
    return [key for key in keys if not key.startswith("override ")]  # choices of Hydra's own


def folder_of(group: str) -> Path:
    return CONF / group.partition("@")[0]


def every_choice() -> Iterator[tuple[str, str]]:
    """Script and override."""
    for script in SETTINGS:
        for group in groups(script):
            for file in sorted(folder_of(group).glob("*.yaml")):
                yield script, f"{group}={file.stem}"


@cache
def composed(script: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(script, overrides=[*SETTINGS[script][1], *overrides])
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check(script: str, config: dict[str, Any]) -> None:
    """Bind every key of a configuration to the signature of what it is for."""
    validated(SETTINGS[script][0], own(config), script, set())
    for part, spec in config.items():
        if not isinstance(spec, dict):
            continue
        if part == "schedule":
            schedule_of(spec)
        elif spec:
            target, arguments = target_of(part, spec)
            validated(target, arguments, part, PARTS[part][1])


def target_of(part: str, spec: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    base, _ = PARTS[part]
    target = base if part == "objective" else locate(spec["_target_"], base, part)
    arguments = {
        name: value
        for name, value in spec.items()
        if name != "_target_" and REPLACED.get((part, name), ...) != value
    }
    return target, arguments


def test_every_file_belongs_to_a_script() -> None:
    assert {file.stem for file in CONF.glob("*.yaml")} == SETTINGS.keys()
    chosen = {folder_of(group) for script in SETTINGS for group in groups(script)}
    hydras_own = {CONF / "hydra" / "launcher", CONF / "hydra" / "sweeper"}
    assert chosen | hydras_own == {file.parent for file in CONF.glob("*/**/*.yaml")}


@pytest.mark.parametrize(("script", "override"), list(every_choice()))
def test_every_key_is_a_setting_of_its_part(script: str, override: str) -> None:
    check(script, composed(script, override))


@pytest.mark.parametrize(("script", "override"), list(every_choice()))
def test_every_setting_of_ours_has_its_key(script: str, override: str) -> None:
    """So that it is found by reading the file, and overridden without Hydra's ``+``."""
    config = composed(script, override)
    for part, spec in config.items():
        if not isinstance(spec, dict) or part == "schedule" or not spec:
            continue
        target, _ = target_of(part, spec)
        if target.__module__.startswith("captioning."):
            parameters = inspect.signature(target).parameters.keys() - PARTS[part][1]
            assert parameters == spec.keys() - {"_target_"}
    assert inspect.signature(SETTINGS[script][0]).parameters.keys() == own(config).keys()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+patiance=3", "train.patiance"),
        ("+model.attention_dimm=3", "model.attention_dimm"),
        ("+data.bach_size=3", "data.bach_size"),
        ("+data.cleaner.lowercas=true", "data.cleaner.lowercas"),
        ("+trainer.max_epoch=3", "trainer.max_epoch"),
        ("+optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("+schedule.warm=1", "schedule.warm"),
        ("+objective.smoothing=1", "objective.smoothing"),
        ("+validation.beam_size=3", "validation.beam_size"),
        ("data.batch_size=many", "data.batch_size=many"),
        ("model.gate=open", "model.gate=open"),
        ("compile=often", "train.compile=often"),
    ],
)
def test_a_wrong_key_or_value_would_be_seen(override: str, key: str) -> None:
    with pytest.raises(CaptioningError, match=key):
        check("train", composed("train", override))


@pytest.mark.parametrize("file", sorted(CONF.glob("experiment/*")), ids=lambda f: f.stem)
def test_an_experiment_has_the_last_word(file: Path) -> None:
    def within(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            return all(within(value, whole[key]) for key, value in part.items())
        return bool(part == whole)

    said = yaml.safe_load(file.read_text())
    said.pop("defaults", None)
    assert within(said, composed("train", f"experiment={file.stem}"))


@pytest.mark.parametrize("script", SETTINGS)
def test_a_key_that_is_in_no_file_is_refused(script: str) -> None:
    with pytest.raises(HydraException):
        composed(script, "trainer.max_epoch=3")

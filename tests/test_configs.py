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
from captioning.data.cleaning import Cleaner
from captioning.data.datamodule import CaptionDataModule
from captioning.decoding import Decoding
from captioning.evaluation.captions_file import EvalSettings
from captioning.models.decoders.base import Decoder
from captioning.models.encoders.base import GridEncoder
from captioning.objectives.base import Objective
from captioning.support.build import locate, only_groups, own, parameters_of, validated
from captioning.support.errors import CaptioningError
from captioning.training.fit import GROUPS, TrainSettings

CONF = Path(__file__).parent.parent / "conf"

SETTINGS: dict[str, tuple[type, list[str]]] = {
    "train": (TrainSettings, ["name=x", "data.root=x"]),  # Hydra knows the name in a running app
    "eval": (EvalSettings, ["ckpt=x", "data.root=x"]),
    "caption": (CaptionSettings, ["ckpt=x", "images=x"]),
}
"""For each script, what its own settings are, and what the user has to give."""

PARTS: dict[str, tuple[type, set[str]]] = {
    "data": (CaptionDataModule, {"seed", "vocabulary", "add_words", "predict_split"}),
    "encoder": (GridEncoder, set()),
    "model": (Decoder, {"vocabulary_size", "channels"}),
    "objective": (Objective, set()),
    "optimizer": (torch.optim.Optimizer, {"params"}),
    "scheduler": (torch.optim.lr_scheduler.LRScheduler, {"optimizer", "total_steps"}),
    "callbacks": (pl.Callback, set()),
    "decoding": (Decoding, set()),
    "validation": (Decoding, set()),
    "trainer": (pl.Trainer, {"callbacks", "logger", "default_root_dir", "inference_mode"}),
    "logger": (Logger, {"save_dir"}),
}
"""For each part of a configuration, what it describes, and the arguments that the program gives."""

REPLACED = {("trainer", "precision"): "auto", ("logger", "offline"): None}
"""Values that :mod:`captioning.training` replaces before it builds the part."""

IDENTITIES = {("data", "name"), ("data", "root"), ("name", "")}
"""Settings that say which data set or run it is, and so have a value of their own in each file."""


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


def parts(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each thing that a configuration has built: its group, its key, and its settings."""
    for group, spec in config.items():
        if group == "callbacks":
            yield from (
                (group, f"{group}.{name}", entry)
                for name, entry in spec.items()
                if entry is not None
            )
        elif isinstance(spec, dict) and spec:
            yield group, group, spec


def check(script: str, config: dict[str, Any]) -> None:
    """Bind every key of a configuration to the signature of what it is for."""
    validated(SETTINGS[script][0], own(config), "", set())
    only_groups(config, GROUPS)
    for group, key, spec in parts(config):
        target, arguments = target_of(group, spec)
        validated(target, arguments, key, PARTS[group][1])


def target_of(group: str, spec: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    target = locate(spec["_target_"], PARTS[group][0], group)
    arguments = {
        name: value
        for name, value in spec.items()
        if name != "_target_" and REPLACED.get((group, name), ...) != value
    }
    return target, arguments


def parameters(target: type, group: str) -> dict[str, inspect.Parameter]:
    """The parameters of a class of ours that are the user's to set, without a library's own."""
    found = parameters_of(target)[0]
    for base in target.__mro__:
        if not base.__module__.startswith("captioning.") and "__init__" in vars(base):
            theirs = inspect.signature(base).parameters.keys()
            mine = [
                each
                for ours in target.__mro__
                if ours.__module__.startswith("captioning.") and "__init__" in vars(ours)
                for each in inspect.signature(ours).parameters
            ]
            found = {k: v for k, v in found.items() if k in mine or k not in theirs}
    return {name: each for name, each in found.items() if name not in PARTS[group][1]}


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
    for group, _, spec in parts(config):
        target, _ = target_of(group, spec)
        if target.__module__.startswith("captioning."):
            assert parameters(target, group).keys() == spec.keys() - {"_target_"}
    assert inspect.signature(SETTINGS[script][0]).parameters.keys() == own(config).keys()


@pytest.mark.parametrize(
    ("script", "override"),
    [each for each in every_choice() if each[1].partition("=")[0] not in ("experiment", "sweep")],
)
def test_a_file_and_its_class_have_the_same_defaults(script: str, override: str) -> None:
    """So that a notebook trains what ``train.py`` does. Experiments alone say otherwise."""
    config = composed(script, override)
    for group, key, spec in parts(config):
        target, _ = target_of(group, spec)
        if not target.__module__.startswith("captioning."):
            continue
        for name, parameter in parameters(target, group).items():
            if parameter.default is not parameter.empty and (group, name) not in IDENTITIES:
                expected = parameter.default
                if name == "cleaner":
                    expected = vars(Cleaner())
                elif isinstance(expected, tuple):
                    expected = list(expected)
                assert spec[name] == expected, f"{key}.{name}"
                assert isinstance(spec[name], bool) == isinstance(expected, bool)
    given = {each.partition("=")[0] for each in SETTINGS[script][1]}
    for name, parameter in inspect.signature(SETTINGS[script][0]).parameters.items():
        if parameter.default is not parameter.empty and name not in given:
            default = config[name] if repr(parameter.default) == "<factory>" else parameter.default
            assert config[name] == (list(default) if isinstance(default, tuple) else default), name


def test_the_published_recipe() -> None:
    """The settings behind the figures in ``docs/results``: a change of one needs new figures."""
    config = composed("train")
    expected = {
        "data": {"batch_size": 16, "max_words": 25, "min_count": 5, "max_size": None},
        "encoder": {"image_size": 224, "resize": "squash", "trainable": False},
        "model": {
            "attention": "additive", "attention_dim": 512, "hidden_dim": 512, "embed_dim": 512,
            "dropout": 0.5, "recurrent_dropout": 0.2, "word_dropout": 0.0, "grid_dropout": 0.0,
            "gate": "channel", "word_query": False, "deep_output": True, "tie_embeddings": False,
            "normalize_grid": True,
        },
        "objective": {
            "label_smoothing": 0.1, "attention_penalty": 0.0, "coverage_target": "uniform",
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01},
        "scheduler": {
            "_target_": "captioning.training.schedules.WarmupCosine", "warmup": 0.04, "final": 0.01,
        },
        "decoding": {
            "_target_": "captioning.decoding.Beam", "beam_size": 5, "length_penalty": 0.8,
            "no_repeat_ngram": 2, "allow_repeats": False, "allow_unknown": False, "max_length": 20,
        },
        "validation": {"_target_": "captioning.decoding.Greedy", "no_repeat_ngram": 2},
        "trainer": {"max_epochs": 9, "gradient_clip_val": 2.0, "precision": "auto"},
    }  # fmt: skip
    for group, settings in expected.items():
        assert {name: config[group][name] for name in settings} == settings
    callbacks = config["callbacks"]
    assert callbacks["ema"]["decay"] == 0.998
    assert callbacks["best_checkpoint"]["monitor"] == "dev/CIDEr"
    assert callbacks["best_checkpoint"]["mode"] == "max"
    assert callbacks["early_stopping"]["monitor"] == "dev/CIDEr"
    assert callbacks["early_stopping"]["mode"] == "max"
    assert callbacks["early_stopping"]["patience"] == 4
    assert (config["seed"], config["encoder_lr"], config["backend"]) == (0, 1e-5, "auto")


@pytest.mark.parametrize(
    "others", [[], ["experiment=scenes"], ["experiment=show_attend_and_tell"]], ids=str
)
def test_hard_attention_comes_with_its_objective(others: list[str]) -> None:
    config = composed("train", "model=hard_attn_lstm", *others)
    assert config["model"]["_target_"].endswith("HardAttentionLSTM")
    assert config["objective"]["_target_"].endswith("HardAttention")
    paper = {"reinforce": 0.1, "entropy": 0.002, "baseline_decay": 0.9}
    assert {name: config["objective"][name] for name in paper} == paper
    assert config["model"]["sampling_share"] == 0.5
    check("train", config)


def test_an_objective_on_the_command_line_replaces_that_of_the_model() -> None:
    config = composed("train", "model=hard_attn_lstm", "objective=cross_entropy")
    assert config["objective"]["_target_"].endswith("CrossEntropy")


def test_the_recipe_of_the_paper() -> None:
    config = composed("train", "experiment=show_attend_and_tell")
    assert config["model"]["_target_"].endswith("AttentionLSTM")
    assert config["model"]["gate"] == "scalar"
    assert config["model"]["deep_output"] is True
    assert config["model"]["dropout"] == 0.5
    assert config["model"]["recurrent_dropout"] == 0.0
    assert config["objective"] == {
        "_target_": "captioning.objectives.cross_entropy.CrossEntropy",
        "label_smoothing": 0.0,
        "attention_penalty": 1.0,
        "coverage_target": "one",
    }
    assert config["optimizer"]["_target_"] == "torch.optim.RMSprop"
    assert config["callbacks"]["ema"] is None
    assert config["data"]["batch_size"] * 5 == 65
    assert config["decoding"]["_target_"] == "captioning.decoding.Beam"
    assert config["decoding"]["length_penalty"] == 0.0
    assert config["decoding"]["no_repeat_ngram"] == 0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+patiance=3", "patiance"),
        ("+model.attention_dimm=3", "model.attention_dimm"),
        ("+data.bach_size=3", "data.bach_size"),
        ("+data.cleaner.lowercas=true", "data.cleaner.lowercas"),
        ("+trainer.max_epoch=3", "trainer.max_epoch"),
        ("+optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("+scheduler.warm=1", "scheduler.warm"),
        ("+callbacks.ema.decoy=1", "callbacks.ema.decoy"),
        ("+callbacks.early_stopping.min_delte=1", "did you mean min_delta"),
        ("+nothing.at_all=1", "nothing: no such setting"),
        ("+objective.smoothing=1", "objective.smoothing"),
        ("+validation.beam_size=3", "validation.beam_size"),
        ("data.batch_size=many", "data.batch_size=many"),
        ("model.gate=open", "model.gate=open"),
        ("backend=often", "backend=often"),
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
    said.pop("name", None)  # the command line of `composed` has one
    assert within(said, composed("train", f"experiment={file.stem}"))


@pytest.mark.parametrize("script", SETTINGS)
def test_a_key_that_is_in_no_file_is_refused(script: str) -> None:
    with pytest.raises(HydraException):
        composed(script, "trainer.max_epoch=3")

"""The settings of runs: which runs have the same, and in which settings others differ."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from captioning.reporting.results import Results
from captioning.support.renamed import RENAMED
from captioning.support.settings import WHERE_DATA_LIES

ARITHMETIC: Final = ("precision", "device", "backend", "threads")
"""The parts of a run's arithmetic, see `captioning.reporting.arithmetic.Arithmetic`."""

_OF_PARTS = ("own code", "encoder weights", "vocabulary size")

# Tables show the settings of these groups first.
_GROUPS = (
    "model", "objective", "optimizer", "scheduler", "schedule", "decoding", "data", "encoder",
)  # fmt: skip

_OF_THE_MODEL = ("model", "objective", "decoding", "data", "encoder", "views")

# Names and places of runs, what else is computed of their captions, and the arithmetic that was
# asked for. None of them is part of the configuration.
_NEVER = {
    "name", "seed", "resume", "ckpt", "logger", "captions", "references", "images", "subset",
    "split", "extra_metrics", "clip_weights", "pac_weights", "spice_files",
    "spice_memory", "backend",
    "compile", "trust",
    "trainer.accelerator", "trainer.precision", "trainer.default_root_dir",
    "trainer.log_every_n_steps", "data.eval_batch_size", "callbacks.attention_images",
    "optimizer.fused", "callbacks.last_epochs",
    "data.split_seed",  # the fingerprint of the data covers the splits
    "callbacks.caption_table", "callbacks.epoch_log", *(f"data.{key}" for key in WHERE_DATA_LIES),
}  # fmt: skip
_PATH_KEYS = {
    "root", "path", "dirpath", "filename", "save_dir", "folder", "save_weights_only",
}  # fmt: skip
_PATH_STARTS = ("/", "./", "../", "~")

# What training did in version 0.1 (files of schema 1) without a setting that said so.
_IMPLIED_BY_SCHEMA_1 = {
    "objective": "CrossEntropy",
    "scheduler": "WarmupCosine",
    "callbacks.ema": "EMA",
    "callbacks.best_checkpoint": "ModelCheckpoint",
    "callbacks.best_checkpoint.monitor": "dev/CIDEr",
    "callbacks.best_checkpoint.mode": "max",
    "callbacks.last_checkpoint": "ModelCheckpoint",
    "callbacks.last_checkpoint.save_on_train_epoch_end": "true",
    "callbacks.early_stopping": "ResumableEarlyStopping",
    "callbacks.early_stopping.monitor": "dev/CIDEr",
    "callbacks.early_stopping.mode": "max",
}

ORIGINAL_ALONE: Final = '["original"]'
"""The value of the settings of views, if an image has none but the picture itself."""

_OFF = ("null", "false", "{}", "[]", ORIGINAL_ALONE)

# Tables have columns of their own for these groups, which name the class.
_SHOWN_CLASSES = ("model", "decoding")


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as they are given on the command line, such as ``model.dropout`` and ``0.5``."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def configuration(results: Results) -> dict[str, str]:
    """The settings that make a run what it is, without its seed, paths, loggers and arithmetic.

    Settings that are off (null, false, empty, or the original view) are left out, because files
    from before a setting existed lack it. A class is named without its module, under the key of its
    group, and an encoder by the name that it has itself.
    """
    found: dict[str, str] = {}
    for key, value in flat(_in_new_names(results)):
        group, _, last = key.rpartition(".")
        parents = {key[: place or None] for place in (*_dots(key), 0)}
        if value in _OFF or parents & _NEVER or last in _PATH_KEYS:
            continue
        if last == "_target_":
            found[group] = value.rpartition(".")[2]
        elif not value.startswith(_PATH_STARTS):
            found[key] = value
    if results.encoder is not None:
        found["encoder"] = name = results.encoder.name  # of torchvision's network and layer, too
        for key in ("encoder.name", "encoder.layer"):
            if key in found and found[key] in name:
                del found[key]
    return found


def _decoding(results: Results) -> dict[str, Any] | None:
    """How captions were decoded, without the settings that are off."""
    if results.decoding is None:
        return None
    settings = results.decoding.model_dump()
    return {key: value for key, value in settings.items() if json.dumps(value) not in _OFF}


def _in_new_names(results: Results) -> dict[str, Any]:
    """The settings of a run, those of schema 1 under the names that they have now."""
    settings = dict(results.settings)
    if results.schema_version > 1 or "model" not in settings:
        return settings
    named = {RENAMED.get(key, key): value for key, value in flat(settings)}
    named |= {key: value for key, value in _IMPLIED_BY_SCHEMA_1.items() if key not in named}
    if named.get("callbacks.ema.decay") == "0":  # it was off
        named = {key: value for key, value in named.items() if not key.startswith("callbacks.ema")}
    if "model.attention_dim" in named:
        named.setdefault("model.attention", "additive")
    return named


def _dots(key: str) -> list[int]:
    return [place for place, character in enumerate(key) if character == "."]


def identity(results: Results) -> str:
    """A text that two runs share if they differ at most in seed and arithmetic.

    Neither the classes that they name nor the code of those of the user's own may differ.
    """
    parts = (
        results.vocabulary.model_dump() if results.vocabulary else None,
        results.encoder.model_dump(exclude={"weights_source"}) if results.encoder else None,
        results.model.model_dump(exclude={"parameters"}) if results.model else None,
        _decoding(results),
        results.own_code or None,
    )
    return json.dumps([results.name, configuration(results), parts], sort_keys=True)


def grouped(runs: Sequence[Results]) -> list[list[int]]:
    """Group runs that are seeds of one configuration.

    Runs that also share their arithmetic are grouped first. Groups of one configuration with other
    arithmetic are then united unless they have a seed in common. A seed that was run twice is in
    two groups; a run without a seed is in a group of its own.

    Args:
        runs: the results of each.

    Returns:
        The indices of the runs of each group, the lowest seed first.
    """
    alike: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    seen: dict[tuple[str, str, int | None], int] = defaultdict(int)
    for index, run in enumerate(runs):
        same = identity(run) if run.seed is not None else f"{index} alone"
        arithmetic = json.dumps(run.arithmetic_texts)
        alike[same, arithmetic, seen[same, arithmetic, run.seed]].append(index)
        seen[same, arithmetic, run.seed] += 1
    groups: dict[str, list[list[int]]] = defaultdict(list)
    for (same, _, _), members in alike.items():
        seeds = {runs[index].seed for index in members}
        for group in groups[same]:
            if not seeds & {runs[index].seed for index in group}:
                group += members
                break
        else:
            groups[same].append(members)
    return [
        sorted(group, key=lambda index: runs[index].seed or 0)
        for of_configuration in groups.values()
        for group in of_configuration
    ]


def differing(rows: Sequence[Sequence[Results]]) -> list[dict[str, str]]:
    """The settings in which the rows of a table differ.

    A setting that a row lacks because its model, objective or the like is of another class does not
    count as another value: a table of models with and without attention has no column for the
    dimension of the attention, unless the models with attention differ in it. Arithmetic, the code
    of the user's own classes, encoder weights and the size of the vocabulary are only included
    where rows of one name would look the same without them.

    Args:
        rows: the runs of each row, which have the same configuration.

    Returns:
        The value of each row for the same keys in the same order, those first that tell most: see
        :func:`most_telling_first`; ``-`` where a row lacks the setting.
    """
    firsts = [runs[0] for runs in rows]
    settings = [configuration(run) for run in firsts]
    keys = list(dict.fromkeys(key for found in settings for key in found))
    keys = [key for key in keys if key not in _SHOWN_CLASSES and _differs(key, settings, firsts)]
    keys.sort(key=_priority)  # stable
    columns = [{key: found.get(key, "-") for key in keys} for found in settings]
    known = [
        (run.name, run.model and run.model.name, run.decoding and run.decoding.label)
        for run in firsts
    ]
    keys = most_telling_first(known, keys, columns)
    columns = [{key: found[key] for key in keys} for found in columns]
    alike: dict[str, list[int]] = defaultdict(list)
    for place, (run, values) in enumerate(zip(firsts, columns, strict=True)):
        alike[json.dumps([run.name, values])].append(place)
    further = [_further(runs) for runs in rows]
    added = [
        key
        for key in (*_OF_PARTS, *ARITHMETIC)
        if any(len({further[place][key] for place in places}) > 1 for places in alike.values())
    ]
    return [
        values | {key: more[key] for key in added}
        for values, more in zip(columns, further, strict=True)
    ]


def most_telling_first(
    known: Sequence[Hashable], keys: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> list[str]:
    """Settings in an order in which the first few tell the rows of a table apart.

    The next one is always that which, with what is known of the rows and the settings before it,
    leaves least open which row is meant (which has the highest joint entropy). Among several of
    these, the settings of the model, its data and its loss come before those of the optimisation,
    and then that which differs most by itself.

    Args:
        known: what each row is known by before, such as its name.
        keys: the settings.
        rows: their values, for each row.
    """
    left, ordered = list(keys), []
    alone = {key: round(_entropy([row[key] for row in rows]), 9) for key in keys}
    while left:
        joint = {
            key: [(before, row[key]) for before, row in zip(known, rows, strict=True)]
            for key in left
        }
        ranks = {
            key: (
                round(_entropy(joint[key]), 9),
                key.partition(".")[0] in _OF_THE_MODEL,
                alone[key],
            )
            for key in left
        }
        best = max(left, key=ranks.__getitem__)
        known = joint[best]
        left.remove(best)
        ordered.append(best)
    return ordered


def _entropy(values: Sequence[Hashable]) -> float:
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * math.log2(share) for share in shares)


def _differs(key: str, settings: Sequence[Mapping[str, str]], runs: Sequence[Results]) -> bool:
    group = key.partition(".")[0]
    values: dict[str, set[str | None]] = defaultdict(set)
    for found, run in zip(settings, runs, strict=True):
        name = run.model.name if group == "model" and run.model else ""
        values[f"{name} {found.get(group, '')}" if group != key else ""].add(found.get(key))
    return any(len(each) > 1 for each in values.values()) or (
        len({value for each in values.values() for value in each} - {None}) > 1
    )


def _priority(key: str) -> tuple[int, bool]:
    group = key.partition(".")[0]
    place = _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)
    return place, group == "callbacks"


def _further(runs: Sequence[Results]) -> dict[str, str]:
    """What can tell rows apart that have the same settings."""
    first = runs[0]
    return {
        "own code": " ".join(dict.fromkeys((first.own_code or {"": "-"}).values())),
        "encoder weights": first.encoder.fingerprint[:8] if first.encoder else "-",
        "vocabulary size": str(first.vocabulary.size) if first.vocabulary else "-",
        **{part: " / ".join(values) for part, values in arithmetic_values(runs).items()},
    }


def arithmetic_values(runs: Iterable[Results]) -> dict[str, list[str]]:
    """The different values of each part of the runs' arithmetic, in alphabetical order."""
    texts = [run.arithmetic_texts for run in runs]
    return {part: sorted({text[part] for text in texts}) for part in ARITHMETIC}

"""What a model has learned from: data sets, the model that it started from, and its teachers.

The ``run`` of a checkpoint or of an exported model says so: ``config.data.name`` is the data of its
own training, ``earlier_data`` that of the models from which it started, and ``teachers`` has an
entry for each model that taught it, or one of those.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Run = Mapping[str, Any]


class Teacher(NamedTuple):
    """A model whose word probabilities another model has learned.

    Attributes:
        name: of its run.
        seed: of its run; None if it is not known.
        data: the data sets on which it was trained; empty if they are not known.
    """

    name: str
    seed: int | None
    data: tuple[str, ...]


def data_of(run: Run) -> list[str]:
    """The names of the data sets on which a model was trained, the first one first."""
    last = run.get("config", {}).get("data", {}).get("name")
    return _names([*earlier_data_of(run), *([last] if last else [])])


def earlier_data_of(run: Run) -> list[str]:
    """The names of the data sets of the models from which a model started."""
    return _names(run.get("earlier_data", []))


def teachers_of(run: Run) -> list[Teacher]:
    """The teachers of a model, of the models from which it started, and of its teachers."""
    return [_teacher(each, each.get("data", [])) for each in run.get("teachers", [])]


def started_from(run: Run, other: Run) -> dict[str, Any]:
    """The ``run`` of a model that starts from the weights of another one."""
    return {**run, "earlier_data": data_of(other), **_record(teachers_of(other))}


def taught_by(run: Run, others: Iterable[Run]) -> dict[str, Any]:
    """The ``run`` of a model that learns from others."""
    found = teachers_of(run)
    for other in others:
        found += [_teacher(other, data_of(other)), *teachers_of(other)]
    return {**run, **_record(found)}


def _teacher(run: Run, data: Iterable[object]) -> Teacher:
    seed = run.get("seed")
    return Teacher(
        _line(run.get("name")), seed if isinstance(seed, int) else None, tuple(_names(data))
    )


def _record(teachers: Iterable[Teacher]) -> dict[str, Any]:
    """Teachers as plain data; nothing without any."""
    found = [
        {"name": each.name, "seed": each.seed, "data": list(each.data)}
        for each in dict.fromkeys(teachers)
    ]
    return {"teachers": found} if found else {}


def _names(names: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(map(_line, names)))


def _line(text: object) -> str:
    return " ".join(str(text).split())

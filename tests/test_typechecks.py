"""The checks that the tests add to every function find what jaxtyping's own find."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import typechecks
from jaxtyping import TypeCheckError, install_import_hook
from torch import ones

from captioning.models.attention.additive import AdditiveAttention

OURS = typechecks.checked
THEIRS = jaxtyping._decorator.jaxtyped

SOURCE = """
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from jaxtyping import Float, Int
from torch import Tensor
if TYPE_CHECKING:
    from nowhere import Unknown

Any = TypeVar("Any", bound="Both")

def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"], *,
            scale: float = 1.0) -> Float[Tensor, "rows columns"]:
    return scale * (a @ b if len(a) != 3 else b @ a)

def plain(number: int, name: str | None = None) -> str:
    return number if name == "wrong" else str(number)

def listed(grids: list[Int[Tensor, " batch"]] | None, *rest: Float[Tensor, " batch"]) -> None:
    if grids:
        inner(grids[0], ones=grids[0])

def inner(batch: Int[Tensor, " any"], **named: Int[Tensor, " any"]) -> None: ...

def unknown(value: "Unknown", number: int) -> "Unknown":
    return value

def rows(grid: Float[Tensor, "rows 2"]) -> Iterator[Float[Tensor, "2"]]:
    yield from grid

@dataclass
class Both:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]
    names: list[str] = field(default_factory=list)

    @property
    def sum(self) -> Float[Tensor, " n"]:
        return self.a + self.b if len(self.a) != 3 else self.a.sum()

    @classmethod
    def of(cls: type[Any], a: Float[Tensor, " n"]) -> Any:
        return cls(a, a)

    @staticmethod
    def half(a: float) -> float:
        return a / 2 if a else "none"

@dataclass
class Third(Both):
    c: int = 0

@dataclass(frozen=True, slots=True)
class Slots:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]
"""


@pytest.fixture(params=["ours", "jaxtyping's", "with strings"])
def module(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The module of ``SOURCE``, checked by us or by jaxtyping."""
    name = f"checked_{request.param[:4]}"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(jaxtyping, "jaxtyped", THEIRS if "jax" in request.param else OURS)
    strings = "from __future__ import annotations\n" if "strings" in request.param else ""
    (tmp_path / f"{name}.py").write_text(strings + SOURCE)
    with install_import_hook(name, "beartype.beartype"):
        yield __import__(name)
    del sys.modules[name]


RIGHT: list[Callable[[Any], object]] = [
    lambda m: m.product(ones(2, 3), ones(3, 4), scale=2.0),
    lambda m: m.product(b=ones(5, 5), a=ones(5, 5)),
    lambda m: m.plain(3),
    lambda m: m.plain(3, name=None),
    lambda m: m.listed([ones(2).int()], ones(2), ones(2)),
    lambda m: m.listed(None, ones(3)),
    # The names of dimensions are those of one call, also where another is made within it.
    lambda m: m.listed([ones(2).int()], ones(2)) or m.listed([ones(4).int()], ones(4)),
    lambda m: m.unknown("anything", 3),
    lambda m: list(m.rows(ones(3, 2))),
    lambda m: m.Both(ones(2), ones(2)).sum,
    lambda m: m.Both.of(ones(1)),
    lambda m: m.Both.half(1.0),
    lambda m: m.Third(ones(2), ones(2), c=1),
    lambda m: m.Slots(ones(2), ones(2)),
]

WRONG: list[Callable[[Any], object]] = [
    lambda m: m.product(ones(2, 3), ones(4, 4)),  # two arguments that do not fit each other
    lambda m: m.product(ones(2, 3), ones(3, 4).int()),
    lambda m: m.product(ones(2), ones(2, 4)),
    lambda m: m.product([[1.0]], ones(1, 1)),
    lambda m: m.product(ones(2, 3), ones(3, 4), scale="2"),
    lambda m: m.product(ones(3, 5), ones(5, 3)),  # a result that does not fit the arguments
    lambda m: m.plain("3"),
    lambda m: m.plain(3, name=4),
    lambda m: m.plain(3, "wrong"),
    lambda m: m.listed([ones(2)]),
    lambda m: m.listed([ones(2).int()], ones(3)),
    lambda m: m.listed(None, ones(2), ones(3)),
    lambda m: m.inner(ones(2).int(), other=ones(3).int()),
    lambda m: m.unknown("anything", "3"),
    lambda m: m.rows(ones(3, 3)),
    lambda m: m.Both(ones(2), ones(3)),
    lambda m: m.Both(ones(2), ones(2), names="ab"),
    lambda m: m.Both(ones(3), ones(3)).sum,
    lambda m: m.Both.of(ones(2, 2)),
    lambda m: m.Both.half(0.0),
    lambda m: m.Both.half("1"),
    lambda m: m.Third(ones(2), ones(3)),
    lambda m: m.Third(ones(2), ones(2), c="1"),
    lambda m: m.Slots(ones(2), ones(3)),
]


def test_what_fits_passes_and_what_does_not_is_refused(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in RIGHT:
        call(module)
    assert [number for number, call in enumerate(WRONG) if not is_refused(call, module)] == []
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert module.plain("3") == "3"
    assert module.product(ones(2, 3), ones(3, 4).double().float(), scale=2).shape == (2, 4)


def is_refused(call: Callable[[Any], object], module: Any) -> bool:
    try:
        call(module)
    except TypeCheckError:
        return True
    return False


def test_a_function_still_looks_like_itself(module: Any) -> None:
    product = module.product
    assert (product.__name__, product.__module__) == ("product", module.__name__)
    assert product.__wrapped__.__code__.co_name == "product"
    with pytest.raises(TypeError, match="missing"):
        product(ones(2, 3))


def test_the_package_is_checked_by_them() -> None:
    attention = AdditiveAttention(channels=5, query_dim=4, attention_dim=3)
    for method in (AdditiveAttention.forward, AdditiveAttention.prepare):
        assert method.__code__.co_filename == typechecks.__file__
    attention.prepare(ones(2, 7, 5))
    for wrong in (ones(7, 5), ones(2, 7, 5).long()):
        with pytest.raises(TypeCheckError):
            attention.prepare(wrong)

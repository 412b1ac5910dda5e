"""The checks of types and shapes that the tests add to every function, at a third of their price.

pytest's option ``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped`` around every function of the
packages. In each call, that decorator binds the arguments to their names and checks them twice:
alone, and once more beside the result. This took half of the time of the tests of decoders. The
decorator of this file checks the same once: the arguments, with names of dimensions that hold for
the call, and then the result.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

check_types = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def install() -> None:
    """Let the modules that are imported from now on be checked by :func:`checked`."""
    jaxtyping.jaxtyped = checked


def checked(decorated: Any = None, *, typechecker: Any) -> Any:
    """Check a function, or how a dataclass is made, as ``jaxtyped(typechecker=beartype)`` does."""
    if decorated is None:
        return functools.partial(checked, typechecker=typechecker)
    if isinstance(decorated, type):
        if is_dataclass(decorated) and not hasattr(decorated.__init__, "__wrapped__"):
            decorated.__init__ = checked(decorated.__init__, typechecker=typechecker)  # type: ignore[misc]
        return decorated
    if inspect.isgeneratorfunction(decorated) or not isinstance(decorated, types.FunctionType):
        return jaxtyped(decorated, typechecker=typechecker)
    hints = {name: resolved(hint, decorated) for name, hint in decorated.__annotations__.items()}
    return once(decorated, hints)


def once(function: types.FunctionType, hints: dict[str, Any]) -> Callable[..., Any]:
    """The function, with one check of its arguments and its result."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    copy.__annotations__ = hints
    check: Callable[..., Any] = check_types(copy)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        return check(*args, **kwargs)

    @functools.wraps(function)
    def shaped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with jaxtyped("context"):  # in which each name of a dimension has one size
            return check(*args, **kwargs)

    return shaped if any(map(has_shape, hints.values())) else plain


def resolved(hint: Any, function: types.FunctionType) -> Any:
    """A hint that may be a string; ``Any`` for a name that only type checkers import."""

    def probe() -> None: ...

    probe.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(probe, function.__globals__, include_extras=True)["hint"]
    except Exception:  # jaxtyping, too, checks nothing where a name cannot be found
        return Any


def has_shape(hint: Any) -> bool:
    """Whether a hint states the shape of an array, on its own or within another."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(hint)))

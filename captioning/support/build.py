"""Build an object from a configuration: a ``_target_`` and its plain arguments.

Hydra's ``instantiate`` calls whatever a configuration names. Checkpoints carry configurations, and
a file that people download must not be able to call anything: here the target has to be a
subclass of what is asked for, and every value is checked against the signature before the call.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from captioning.support.errors import CaptioningError

T = TypeVar("T")


def build(spec: Mapping[str, Any], base: Callable[..., T], key: str, **given: Any) -> T:
    """Build what a configuration describes.

    Args:
        spec: ``_target_``, the dotted path of a class, and arguments of it.
        base: What the class must be a subclass of.
        key: Where the configuration stands, for messages (``model``).
        given: Arguments that are not the user's to set.

    Raises:
        CaptioningError: no such class, an argument that it does not have, or a wrong value.
    """
    arguments = {name: value for name, value in spec.items() if name != "_target_"}
    target = locate(str(spec.get("_target_") or ""), base, key)
    checked = validated(target, arguments, key, set(given))
    try:
        return target(**checked, **given)
    except ValueError as error:  # of the right type, and yet refused: a dropout of 1.5
        raise CaptioningError(f"{key}: {target.__name__} takes no such value ({error}).") from error


def own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that belong to none of its groups."""
    return {name: value for name, value in config.items() if not isinstance(value, Mapping)}


def locate(path: str, base: Callable[..., T], key: str) -> type[T]:
    """The class of a dotted path.

    Raises:
        CaptioningError: there is none, or it is no subclass of ``base`` that can be built.
    """
    # Typed as something to call, since mypy takes no abstract class for a `type`.
    assert isinstance(base, type)
    if not path:
        raise CaptioningError(
            f"{key}._target_ is missing: give the dotted path of a {base.__name__}."
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise CaptioningError(f"{key}._target_={path}: no such class ({error}).") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CaptioningError(f"{key}._target_={path} is not a {base.__name__}.")
    if inspect.isabstract(found):
        raise CaptioningError(f"{key}._target_={path} is abstract: name a subclass of it.")
    return cast(type[T], found)


def validated(
    target: type, arguments: Mapping[str, Any], key: str, given: set[str]
) -> dict[str, Any]:
    """The arguments, each checked against the signature of ``target`` and converted to its type."""
    parameters, hints = {}, {}
    for each in target.__mro__:
        if "__init__" not in vars(each) and each is not target:
            continue
        found = inspect.signature(each if each is target else each.__init__).parameters
        hints = type_hints(each.__init__) | hints
        parameters = {
            n: q
            for n, q in found.items()
            if n not in given and n != "self" and q.kind not in (q.VAR_KEYWORD, q.VAR_POSITIONAL)
        } | parameters
        if not any(q.kind == q.VAR_KEYWORD for q in found.values()):
            break
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in parameters:
            raise CaptioningError(
                f"{key}.{name}: {target.__name__} has no such setting; "
                f"it has {', '.join(sorted(parameters))}."
            )
        hint = hints.get(name, Any)
        types = (part for part in (hint, *get_args(hint)) if isinstance(part, type))
        nested = next(filter(is_dataclass, types), None)
        if nested and isinstance(value, Mapping):  # pydantic would ignore its unknown settings
            checked[name] = nested(**validated(nested, value, f"{key}.{name}", set()))
            continue
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            checked[name] = adapter.validate_python(value)
        except PydanticSchemaGenerationError:  # a type that only its own class can judge
            checked[name] = value
        except ValidationError as error:
            reason = "; or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
            raise CaptioningError(f"{key}.{name}={value}: {reason}.") from error
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in checked
    ]
    if missing:
        raise CaptioningError(f"{key}.{missing[0]} is missing: {target.__name__} needs it.")
    return checked


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's arguments; names that only type checkers import count as Any."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(function, localns=unknown)
        except NameError as error:
            if not error.name or error.name in unknown:  # each round learns a name
                raise
            unknown[error.name] = Any

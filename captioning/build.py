"""Build an object from a configuration: a ``_target_`` and its plain arguments.

Hydra's ``instantiate`` calls whatever a configuration names. Checkpoints carry configurations, and
a file that people download must not be able to call anything: here the target has to be a
subclass of what is asked for, and every value is checked against the signature before the call.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from captioning.errors import CaptioningError

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
    target = locate(str(spec.get("_target_", "")), base, key)
    return target(**validated(target, arguments, key, set(given)), **given)


def locate(path: str, base: Callable[..., T], key: str) -> type[T]:
    """The class of a dotted path.

    Raises:
        CaptioningError: there is none, or it is no subclass of ``base``.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CaptioningError(f"{key}._target_={path}: no such class ({error}).") from error
    # Typed as something to call, since mypy takes no abstract class for a `type`.
    assert isinstance(base, type)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CaptioningError(f"{key}._target_={path} is not a {base.__name__}.")
    return cast(type[T], found)


def validated(
    target: type, arguments: Mapping[str, Any], key: str, given: set[str]
) -> dict[str, Any]:
    """The arguments, each checked against the signature of ``target`` and converted to its type."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if name not in given
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    hints = get_type_hints(inspect.getattr_static(target, "__init__"))
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in parameters:
            raise CaptioningError(
                f"{key}.{name}: {target.__name__} has no such setting; "
                f"it has {', '.join(sorted(parameters))}."
            )
        try:
            adapter = TypeAdapter(
                hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True)
            )
            checked[name] = adapter.validate_python(value)
        except PydanticSchemaGenerationError:  # a type that only its own class can judge
            checked[name] = value
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise CaptioningError(f"{key}.{name}={value}: {reason}.") from error
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in checked
    ]
    if missing:
        raise CaptioningError(f"{key}.{missing[0]} is missing: {target.__name__} needs it.")
    return checked

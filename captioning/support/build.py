"""Build an object from a configuration: a ``_target_`` and its plain arguments.

Hydra's ``instantiate`` calls whatever a configuration names. Checkpoints carry configurations, and
a file that people download must not be able to call anything: here the target has to be a
subclass of what is asked for, and every value is checked against the signature before the call.
While a checkpoint is loaded, :mod:`captioning.support.trust` checks each path before its import.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean
from captioning.support.renamed import renamed
from captioning.support.trust import check_trusted, remember

T = TypeVar("T")


def build(
    spec: Mapping[str, Any] | str | type,
    base: Callable[..., T],
    key: str,
    *,
    names: Mapping[str, str] | None = None,
    **given: Any,
) -> T:
    """Build what a configuration describes.

    Args:
        spec: A mapping of ``_target_``, the dotted path of a class, and the class's arguments; or
            the dotted path alone, or one of ``names``.
        base: The class must be this one or a subclass of it.
        key: The key of the configuration, for messages, such as ``model``.
        names: Short names and the dotted paths that they stand for, if the caller allows any.
        given: Arguments that the program passes, which the user cannot set.

    Raises:
        CaptioningError: there is no such class, it has no such argument, or a value is wrong.
    """
    spec = expand(spec, names or {}, key)
    arguments = {name: value for name, value in spec.items() if name != "_target_"}
    target = locate(str(spec.get("_target_") or ""), base, key)
    checked = validated(target, arguments, key, set(given))
    try:
        return target(**checked, **given)
    except ValueError as error:  # a value of the right type that the class refuses: dropout=1.5
        raise CaptioningError(f"{key}: {target.__name__} refuses a value ({error}).") from error
    except TypeError as error:
        # If a class of another library passes **kwargs on, only that library knows which arguments
        # are valid. For any other class, the arguments were checked: the error is a bug in it.
        if not takes_anything(target):
            raise
        raise CaptioningError(f"{key}: {target.__name__}: {error}.") from error


def expand(spec: object, names: Mapping[str, str], key: str) -> dict[str, Any]:
    """Turn a configuration into a mapping whose ``_target_`` is a dotted path.

    ``"additive"``, ``"my_package.MyAttention"``, ``{"_target_": "additive", "heads": 2}`` and
    ``{"_target_": "my_package.MyAttention"}`` are all accepted. Dotted paths are not changed. A
    class in the place of its path, here or within, is replaced by it, as a checkpoint contains it.

    Args:
        spec: The configuration, or the name, path or class alone.
        names: Short names and the dotted paths that they stand for; may be empty.
        key: The key of the configuration, for messages.

    Raises:
        CaptioningError: a short name is not among ``names``, a class cannot be imported by its
            path, or the configuration is an object.
    """
    named = _with_paths(spec, key)
    if not isinstance(named, Mapping | str):
        raise CaptioningError(
            f"{key}: an object, a {type(spec).__name__}, cannot be part of a checkpoint: give its "
            'class, or {"_target_": PATH} with its arguments.'
        )
    expanded = dict(named) if isinstance(named, Mapping) else {"_target_": named}
    target = expanded.get("_target_")
    if not names or not isinstance(target, str) or not target or "." in target:
        return expanded
    if target not in names:
        where = key if isinstance(spec, str) else f"{key}._target_"
        raise CaptioningError(
            f"{where}={target}: there is no such choice; "
            f"{_offer(target, names, 'there are')}, and the dotted path of any class is accepted."
        )
    return expanded | {"_target_": names[target]}


def _with_paths(value: Any, key: str) -> Any:
    """A configuration with the dotted path of each class that it contains."""
    if isinstance(value, Mapping):
        parts = {name: f"{key}.{name}" for name in value}
        return {name: _with_paths(value[name], where) for name, where in parts.items()}
    return path_of(value, key) if isinstance(value, type) else value


def path_of(cls: type, key: str) -> str:
    """The dotted path of a class.

    Raises:
        CaptioningError: it cannot be imported by its path, since it is within a function.
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        raise CaptioningError(
            f"{key}={path}: a checkpoint could not name this class: define it at the top of a "
            "module."
        )
    return path


def _offer(name: str, valid: Iterable[str], there_are: str) -> str:
    """The nearest valid names, if any, and then all of them."""
    suggestion, listed = did_you_mean(name, valid), ", ".join(sorted(valid))
    if not listed:
        return f"{there_are} none"
    return (
        f"{suggestion} {there_are.capitalize()} {listed}" if suggestion else f"{there_are} {listed}"
    )


def own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that do not belong to a group."""
    return {name: value for name, value in config.items() if not isinstance(value, Mapping)}


def only_groups(config: Mapping[str, Any], groups: Collection[str]) -> None:
    """Refuse a configuration with an unknown group, which would be ignored.

    Args:
        config: The whole configuration.
        groups: The valid groups.

    Raises:
        CaptioningError: the configuration has another group.
    """
    for name, value in config.items():
        if isinstance(value, Mapping) and name not in groups:
            remedy = renamed(name) or f"no such setting; {_offer(name, groups, 'there are')}"
            raise CaptioningError(f"{name}: {remedy}.")


def locate(path: str, base: Callable[..., T], key: str) -> type[T]:
    """Import the class of a dotted path.

    Raises:
        CaptioningError: there is no such class, or it is not a concrete subclass of ``base``.
    """
    if not path:
        raise CaptioningError(
            f"{key}._target_ is missing: give the dotted path of a {base.__name__}."
        )
    return import_class(path, base, f"{key}._target_")


def import_class(path: str, base: Callable[..., T], key: str) -> type[T]:
    """Import the class that a setting names by its dotted path.

    Args:
        path: The value of the setting.
        base: What the class must be a concrete subclass of.
        key: The setting, for messages.

    Raises:
        CaptioningError: there is no such class, it is not a concrete subclass of ``base``, or a
            checkpoint names it that may not.
    """
    check_trusted(path, key)
    # `base` is typed as a callable, because mypy does not accept an abstract class as a `type`.
    assert isinstance(base, type)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        package, remedy = module.partition(".")[0], ""
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            remedy = f": start in the folder that has {package}, or add that folder to PYTHONPATH"
        raise CaptioningError(f"{key}={path}: no such class ({error}){remedy}.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CaptioningError(f"{key}={path} is not a {base.__name__}.")
    if inspect.isabstract(found):
        raise CaptioningError(f"{key}={path} is abstract: name a subclass of it.")
    remember(path)
    return cast(type[T], found)


def parameters_of(target: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The named parameters of a class's constructor, and their types.

    If the constructor takes ``**kwargs``, these are assumed to be passed on to the constructor of
    the next class in the method resolution order, so that its parameters are valid, too, and so on.
    """
    parameters: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for function in _constructors(target):
        for name, parameter in list(inspect.signature(function).parameters.items()):
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and name != "self" and name not in parameters:
                parameters[name] = parameter
        hints = type_hints(function) | hints
    return parameters, hints


def takes_anything(target: type) -> bool:
    """Whether the valid keyword arguments of a class cannot be known from its constructors.

    That is so if they are passed on to code of another library, unless the class is an
    ``nn.Module``. For this package's classes and for modules, the constructors list all arguments.
    """
    *_, last = [None, *_constructors(target)]
    if last is None or not _takes_keywords(last):
        return False
    roots = {each.__module__.partition(".")[0] for each in target.__mro__}
    return "captioning" not in roots and not any(
        each.__module__ == "torch.nn.modules.module" for each in target.__mro__
    )


def _constructors(target: type) -> Iterator[Callable[..., Any]]:
    """The ``__init__`` of a class, and those of base classes that receive its ``**kwargs``."""
    for each in target.__mro__:
        if each is object or each.__module__ == "torch.nn.modules.module":
            return
        if "__init__" in vars(each):
            yield vars(each)["__init__"]
            if not _takes_keywords(vars(each)["__init__"]):
                return


def _takes_keywords(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def validated(
    target: type, arguments: Mapping[str, Any], key: str, given: set[str]
) -> dict[str, Any]:
    """Check arguments against the signature of ``target``, and convert them to its types.

    Args:
        target: The class, or a dataclass, that is to be built.
        arguments: The user's arguments, by name.
        key: The key of the configuration, for messages; empty for settings without a group.
        given: The parameters that the program passes, which the user cannot set.

    Raises:
        CaptioningError: an argument is unknown, has a wrong value, or is missing.
    """
    parameters, hints = parameters_of(target)
    parameters = {name: each for name, each in parameters.items() if name not in given}
    free = takes_anything(target)
    prefix = f"{key}." if key else ""
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in parameters and (name in given or not free):
            new = None if key else renamed(name)
            offer = _offer(name, parameters, "it has" if key else "there are")
            whose = f"{target.__name__} has no such setting" if key else "no such setting"
            if key and not did_you_mean(name, parameters):  # it may be of another class
                offer += f"; if a configuration such as experiment= gives it, add ~{prefix}{name}"
            raise CaptioningError(f"{prefix}{name}: {new or f'{whose}; {offer}'}.")
        hint = hints.get(name, Any)
        types = (part for part in (hint, *get_args(hint)) if isinstance(part, type))
        nested = next(filter(is_dataclass, types), None)
        if nested and isinstance(value, Mapping):  # pydantic would ignore unknown settings in it
            checked[name] = nested(**validated(nested, value, f"{prefix}{name}", set()))
            continue
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            checked[name] = adapter.validate_python(value)
        except PydanticSchemaGenerationError:  # a type that pydantic cannot check
            checked[name] = value
        except ValidationError as error:
            # That a value could be an instance of a class is of no use on a command line.
            plain = [each for each in error.errors() if each["type"] != "is_instance_of"]
            reason = "; or ".join(dict.fromkeys(each["msg"] for each in plain or error.errors()))
            raise CaptioningError(f"{prefix}{name}={value}: {reason}.") from error
    # A subclass may pass required arguments to its base itself, so that only the required
    # parameters of the class's own constructor are checked.
    signature = inspect.signature(target).parameters
    missing = [
        name
        for name, parameter in parameters.items()
        if name in signature and parameter.default is parameter.empty and name not in checked
    ]
    if missing:
        needed = f"{target.__name__} needs it" if key else "give it"
        raise CaptioningError(f"{prefix}{missing[0]} is missing: {needed}.")
    return checked


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's arguments; names imported for type checkers only become Any."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(function, localns=unknown)
        except NameError as error:
            if not error.name or error.name in unknown:  # each round resolves one more name
                raise
            unknown[error.name] = Any

"""Error messages for mistakes on the command line: one sentence, in place of Hydra's report.

Hydra answers a mistyped key with "To append to your config use +model.attention_dims=64", which
leads to the next error. This module suggests the most similar valid key instead. It does not import
torch, and it composes the configuration a second time only after a mistake.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from hydra._internal import utils
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.cli.overrides import key_of
from captioning.support.claims import discard_all
from captioning.support.errors import CaptioningError
from captioning.support.files import naming_disk_faults
from captioning.support.nearest import did_you_mean
from captioning.support.renamed import renamed


@contextmanager
def one_sentence(config_name: str) -> Iterator[None]:
    """Make Hydra's main function exit with one sentence and status 1 at a user's mistake.

    Likewise if the disk is full or may not be written, where Hydra itself writes.

    With HYDRA_FULL_ERROR=1 the exception is raised, as without this function.

    Args:
        config_name: the name of the main configuration, for example ``train``.
    """
    report = utils.run_and_report

    def run_and_report(func: Any) -> Any:
        def explained() -> Any:
            try:
                with naming_disk_faults(Path.cwd()), _handlers_own_error():
                    return func()
            except (HydraException, OmegaConfBaseException, CaptioningError) as error:
                if os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                if (interrupt := interrupt_behind(error)) is not None:
                    raise interrupt from None
                is_ours = isinstance(error, CaptioningError)
                message = str(error) if is_ours else explain(error, config_name)
                print(f"error: {message}", file=sys.stderr)
                discard_all()
                sys.exit(1)

        return report(explained)

    utils.run_and_report = run_and_report
    try:
        yield
    finally:
        utils.run_and_report = report


def options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with its options, such as ``--config-dir``, before its settings.

    Of settings that stand on both sides of an option, Hydra says that the later ones are unknown.
    """
    settings: list[str] = []
    with suppress(SystemExit), redirect_stderr(StringIO()):  # Hydra says it again
        settings = utils.get_args_parser().parse_intermixed_args(arguments).overrides
    options = list(arguments)
    for each in settings:
        options.remove(each)
    return [*options, *settings]


@contextmanager
def _handlers_own_error() -> Iterator[None]:
    """Raise the error of a log file that cannot be opened, which logging hides in another one."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or signal behind an error, as one that interrupts the composition of Hydra."""
    seen: list[BaseException] = []  # Hydra chains some exceptions into a circle
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def explain(error: Exception, config_name: str) -> str:
    """A sentence that says which override is wrong and what was probably meant."""
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as KEY=VALUE; a value with commas, brackets or "
            "spaces needs quotes within quotes, as in \"KEY='VALUE'\""
        )
    if isinstance(error, CompactHydraException) and GlobalHydra.instance().is_initialized():
        arguments = utils.get_args_parser().parse_args()
        loader = GlobalHydra.instance().config_loader()
        try:
            mistake = _mistake(loader, arguments.config_name or config_name, arguments.overrides)
        except (HydraException, OmegaConfBaseException):
            mistake = None  # the mistake is in a file, not on the command line
        if mistake is not None:
            return mistake
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("To append", "full_key", "object_type"))]
    return " ".join(kept) or type(error).__name__


def _mistake(loader: ConfigLoader, config_name: str, arguments: list[str]) -> str | None:
    """A message about the first wrong override; None if all are valid."""
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    chosen = []
    for override in overrides:
        options = options_of(loader, override.key_or_group)
        if not options:
            continue
        values = _values(override)
        for value in values:
            if "/" not in value and value.removesuffix(".yaml") not in options:
                suggestion = did_you_mean(value, options)
                listed = f"here are {', '.join(options)}"
                return (
                    f"{key_of(override)}={value}: there is no such choice; "
                    f"{f'{suggestion} T' if suggestion else 't'}{listed}"
                )
        if override.is_sweep_override():  # one value suffices to find out which keys exist
            chosen += [f"{key_of(override)}={values[0]}"] if values else []
        elif override.input_line is not None:
            chosen.append(override.input_line)
    config = loader.load_configuration(config_name, chosen, run_mode=RunMode.RUN)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for override in overrides:
        if options_of(loader, override.key_or_group):
            continue
        if (mistake := _wrong_key(override, plain)) is not None:
            return mistake
    return None


def options_of(loader: ConfigLoader, group: str) -> list[str]:
    """The choices of a configuration group; empty if there is no such group."""
    return [] if "." in group else sorted(loader.get_group_options(group, ObjectType.CONFIG))


def _values(override: Override) -> list[str]:
    """The choices that an override of a configuration group selects."""
    if override.is_delete():
        return []
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    value = override.value()
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _wrong_key(override: Override, config: Mapping[Any, Any]) -> str | None:
    """A message about the key of an override; None if the key is valid."""
    key = key_of(override)
    keys = dict(_flat(config))
    known = key in keys or _within_a_list(key, keys)
    if not known and (new := renamed(key, keys)) is not None:
        return f"{key}: {new}"
    if override.is_add():
        if known and keys.get(key) is not None and not isinstance(keys[key], dict | list):
            return f"+{key}: there is such a setting already; leave out the +"
        return None
    if known or override.is_force_add():
        return None
    return f"{'~' if override.is_delete() else ''}{key}: no such setting; {_remedy(override, keys)}"


def _remedy(override: Override, keys: Mapping[str, Any]) -> str:
    """Suggest similar keys, or else list the keys of the group; say how to add a key if allowed."""
    key = key_of(override)
    is_hydra_key = key.partition(".")[0] == "hydra"
    candidates = [
        each
        for each in keys
        if (each.partition(".")[0] == "hydra") == is_hydra_key and not each.endswith("_target_")
    ]
    within = key
    while within and not isinstance(keys.get(within), dict):
        within = within.rpartition(".")[0]
    suggestion = did_you_mean(key, candidates)
    if not suggestion:
        beside = keys[within] if within else {each for each in candidates if "." not in each}
        listed = ", ".join(sorted(map(str, beside)))
        suggestion = f"{f'{within} has' if within else 'there are'} {listed or 'none'}"
    target = str(keys.get(f"{within}._target_", "captioning." if within != "callbacks" else ""))
    if override.is_delete() or target.startswith("captioning."):
        return suggestion
    separator = "" if suggestion.endswith("?") else "."
    what = f"another argument of {target}" if target else "an entry"
    return f"{suggestion}{separator} To add {what}, write +{override.input_line}"


def _flat(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a configuration in dotted form, with their values."""
    for name, value in config.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")


def _within_a_list(key: str, keys: Mapping[str, Any]) -> bool:
    parts = key.split(".")
    return any(isinstance(keys.get(".".join(parts[:end])), list) for end in range(1, len(parts)))

"""Hydra's overrides: their keys and values, and the names that they give to folders."""

import hashlib
import re
from collections.abc import Sequence

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf


def fixed_and_swept(hydra: DictConfig) -> tuple[list[str], list[str]]:
    """The keys that a multirun sets to the same value in all jobs, and the keys that vary."""
    given = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    fixed = [key_of(each) for each in given if not each.is_sweep_override()]
    swept = [key_of(each) for each in given if each.is_sweep_override()]
    swept += sorted(set(hydra.sweeper.get("params") or []) - {*fixed, *swept})
    return fixed, swept


def swept_overrides(hydra: HydraConf | DictConfig) -> list[str]:
    """The overrides that distinguish a job from others of its sweep, as unquoted ``key=value``."""
    return _swept_overrides(hydra.overrides.task, hydra.job.config.override_dirname.exclude_keys)


def _swept_overrides(overrides: Sequence[str], common: Sequence[str]) -> list[str]:
    given = OverridesParser.create().parse_overrides(list(overrides))
    return [f"{key_of(each)}={_value_of(each)}" for each in given if key_of(each) not in common]


def key_of(override: Override) -> str:
    """The key that an override sets, with its package, for example ``decoding@validation``."""
    return override.get_key_element().lstrip("+~")


def _value_of(override: Override) -> str:
    value = override.value()
    return value if isinstance(value, str) else str(override.input_line).partition("=")[2]


def quoted(value: str) -> str:
    """Quote a string so that Hydra's grammar reads it literally."""
    # Backslashes are special only before a quote. An unescaped `${` would start an interpolation.
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)
    escaped = doubled.replace("'", r"\'").replace("${", r"\${")
    return f"'{escaped}'"


def job_folder(overrides: Sequence[str], common: Sequence[str]) -> str:
    """The name of a job's folder: its swept overrides, turned into a valid file name."""
    return file_name(",".join(sorted(_swept_overrides(overrides, common))) or "job")


def file_name(text: str) -> str:
    """Turn a text into a valid file name. If that changes it, a digest of the text is appended."""
    name = re.sub(r"[^\w ,.=+@:()\[\]{}-]", "_", text).encode()[:150].decode(errors="ignore")
    if name == text:
        return name
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# In a configuration: ${job_folder:OVERRIDES,KEYS_THAT_ALL_JOBS_SHARE}
OmegaConf.register_new_resolver("job_folder", job_folder)

"""Parts of a configuration."""

from collections.abc import Mapping
from typing import Any, Final

WHERE_DATA_LIES: Final = {"root", "cache", "workers", "resident"}
"""Settings of ``data`` for its place and for reading it, which do not change results."""


def without(config: Mapping[str, Any], left_out: Mapping[str, object]) -> dict[str, Any]:
    """A configuration without some settings.

    Args:
        config: the configuration, which is not changed.
        left_out: by the name of a setting or group: the set of the group's keys that are left out,
            or anything else, which leaves out the whole.
    """
    kept = {}
    for key, value in config.items():
        keys = left_out.get(key, set())
        if isinstance(keys, set):
            is_group = isinstance(value, Mapping)
            kept[key] = {k: v for k, v in value.items() if k not in keys} if is_group else value
    return kept

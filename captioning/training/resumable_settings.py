"""Which settings of a run may change when it is resumed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from captioning.reporting.configurations import ORIGINAL_ALONE, flat
from captioning.support.errors import CaptioningError
from captioning.support.settings import WHERE_DATA_LIES

MAY_CHANGE: Final = frozenset(
    {
        # names, and what is computed after training
        *("name", "resume", "trust", "logger", "decoding", "views", "extra_metrics"),
        *("clip_weights", "pac_weights", "spice_files", "spice_memory"),
        # the vocabulary and the splits of a run that is resumed are compared themselves
        *("add_words", "data.split_seed"),
        # where it runs, and where its data lies
        *("backend", "encoder.weights", "optimizer.fused", "data.eval_batch_size"),
        *(f"data.{key}" for key in WHERE_DATA_LIES),
        *(f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy")),
        # how long it trains
        *(f"trainer.{key}" for key in ("max_epochs", "max_steps", "max_time")),
        "callbacks.early_stopping.patience",
        # what is reported
        *("trainer.log_every_n_steps", "trainer.limit_test_batches"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
    }
)
"""Settings, and groups of settings, that do not change what a step of training computes."""

REPORTING: Final = frozenset(
    {
        "captioning.training.callbacks.attention_images.AttentionImages",
        "captioning.training.callbacks.caption_table.CaptionTable",
        "captioning.training.callbacks.epoch_log.EpochLog",
        "pytorch_lightning.callbacks.DeviceStatsMonitor",
        "pytorch_lightning.callbacks.LearningRateMonitor",
        "pytorch_lightning.callbacks.ModelSummary",
        "pytorch_lightning.callbacks.RichProgressBar",
        "pytorch_lightning.callbacks.TQDMProgressBar",
    }
)
"""Callbacks that only report, which may be added, changed or left out."""

_SHOWN: Final = 5


def check_same_settings(saved: Mapping[str, Any], given: Mapping[str, Any], source: str) -> None:
    """Check that a run which is resumed has the settings that it had.

    Args:
        saved: the configuration of the run, as its checkpoint has it.
        given: the configuration with which it is to go on.
        source: what the message begins with, such as ``resume=PATH``.

    Raises:
        CaptioningError: settings differ other than those of :data:`MAY_CHANGE`. All of them are
            named with both values, up to a length that can be read.
    """
    before, now = dict(_fixed(saved)), dict(_fixed(given))
    differ = [
        f"{key}={now.get(key, 'null')[:60]} in place of {before.get(key, 'null')[:60]}"
        for key in dict.fromkeys([*now, *before])
        if now.get(key, "null") != before.get(key, "null")
    ]
    if differ:
        more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise CaptioningError(
            f"{source}: that run has other settings: {', '.join(differ[:_SHOWN])}{more}: "
            "give the same ones, or start a new run with yours; docs/training.md says what may "
            "change."
        )


def _fixed(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that may not change, under the keys of the command line."""
    kept: dict[str, Any] = json.loads(json.dumps(config, default=str))  # tuples become lists
    callbacks = kept.get("callbacks")
    if isinstance(callbacks, dict):
        kept["callbacks"] = {
            name: spec
            for name, spec in callbacks.items()
            if not (isinstance(spec, dict) and spec.get("_target_") in REPORTING)
        }
    for key, value in flat(kept):
        parts = key.split(".")
        groups = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        is_file = parts[0] == "callbacks" and parts[-1] in ("dirpath", "save_weights_only")
        is_off = value in ("null", "{}", ORIGINAL_ALONE)  # as for runs from before it existed
        if not groups & MAY_CHANGE and not is_file and not is_off:
            yield key, value

"""One checkpoint whose weights are the mean of those of several, of one model and vocabulary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from captioning.checkpoints import (
    FORMAT,
    check_complete,
    first_difference,
    has_trained_encoder,
    read_checkpoint,
)
from captioning.ensembles import shared_settings
from captioning.support.errors import CaptioningError

_OBJECTIVE = "objective."


def averaged(paths: Sequence[Path]) -> dict[str, Any]:
    """The content of a checkpoint with the mean of the weights of several.

    Decoders are averaged, and encoders that were trained. Numbers that are no floats, and the
    parameters of the objective, are those of the first checkpoint. Its ``run`` has the settings
    that all of them share, and ``averaged``, their number.

    Args:
        paths: the checkpoints, at least two.

    Raises:
        CaptioningError: a file is no checkpoint, or has another vocabulary, encoder or model than
            the first one.
    """
    if len(paths) < 2:
        raise CaptioningError("give at least two checkpoints to average.")
    first = _read(paths[0])
    sums = {name: tensor.double() for name, tensor in _floats(first).items()}
    configs = [first["run"].get("config")]
    for path in paths[1:]:
        other = _read(path)
        _check_alike(first, other, str(path), str(paths[0]))
        for name, tensor in _floats(other).items():
            sums[name] += tensor
        configs.append(other["run"].get("config"))
    weights: dict[str, Tensor] = dict(first["state_dict"])
    for name, total in sums.items():
        weights[name] = (total / len(paths)).to(weights[name].dtype)
    run: dict[str, Any] = {"name": f"{first['run']['name']}, average of {len(paths)}"}
    known = [config for config in configs if config is not None]
    if len(known) == len(paths):
        run["config"] = shared_settings(known) | {"averaged": len(paths)}
    kept = ("hyper_parameters", "encoder", "classes", "noise_seed", "epoch", "global_step")
    return {
        **{entry: first[entry] for entry in kept if entry in first},
        "pytorch-lightning_version": first.get("pytorch-lightning_version"),
        "format": FORMAT,
        "run": first["run"] | run,
        "state_dict": weights,
    }


def _read(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    check_complete(checkpoint, f"ckpt={path}")
    return checkpoint


def _averaged_entries(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = checkpoint["state_dict"]
    return {name: each for name, each in weights.items() if not name.startswith(_OBJECTIVE)}


def _floats(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    entries = _averaged_entries(checkpoint)
    return {name: each for name, each in entries.items() if each.is_floating_point()}


def _check_alike(
    first: Mapping[str, Any], other: Mapping[str, Any], name: str, first_name: str
) -> None:
    """Check that the mean of the weights of two checkpoints is that of one model."""
    a, b = first["hyper_parameters"], other["hyper_parameters"]
    different = first_difference(_averaged_entries(first), _averaged_entries(other))
    if b["vocabulary"] != a["vocabulary"]:
        what = "another vocabulary"
    elif _without_weights(b) != _without_weights(a) or _encoder(other) != _encoder(first):
        what = "another encoder"
    elif different is not None:
        what = f"another model ({different} differs)"
    elif _function(b.get("model", {})) != _function(a.get("model", {})):
        what = "other model.* settings"
    else:
        return
    raise CaptioningError(
        f"ckpt={name}: this checkpoint has {what} than {first_name}: only weights of one model can "
        "be averaged; eval.py ckpt=[A,B] averages the probabilities of different ones."
    )


def _encoder(checkpoint: Mapping[str, Any]) -> tuple[str, bool]:
    """The fingerprint of the weights that the encoder started from, and whether it is frozen."""
    encoder = checkpoint["encoder"]
    return encoder["fingerprint"], not has_trained_encoder(checkpoint)


def _without_weights(settings: Mapping[str, Any]) -> Any:
    """The settings of the encoder without the place of its weights."""
    encoder = settings.get("encoder")
    if not isinstance(encoder, Mapping):
        return encoder
    return {key: value for key, value in encoder.items() if key != "weights"}


def _function(settings: Any) -> Any:
    """The settings of a model that matter when it is not trained: those without dropout."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _function(value) for key, value in settings.items() if not key.endswith("dropout")}

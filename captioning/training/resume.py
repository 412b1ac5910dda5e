"""Checks whether a run can be resumed from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioning.captioner import Captioner, read_checkpoint
from captioning.support.errors import CaptioningError


def check_resumable(path: Path, captioner: Captioner) -> None:
    """Check that a checkpoint fits a run, before features are extracted and training starts.

    Args:
        path: the checkpoint.
        captioner: the captioner that would be trained from it.

    Raises:
        CaptioningError: the file is not a checkpoint, or its captioner has another vocabulary,
            encoder or model.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint["hyper_parameters"]["vocabulary"] != captioner.vocabulary.to_list():
        raise CaptioningError(
            f"resume={path}: that run has another vocabulary "
            f"({len(checkpoint['hyper_parameters']['vocabulary'])} words) than this data gives "
            f"({len(captioner.vocabulary.words)}): use the same data and the same data.min_count, "
            "data.max_size and data.cleaner."
        )
    frozen = bool(checkpoint["encoder"]["state_dict"])
    if frozen and checkpoint["encoder"]["fingerprint"] != captioner.encoder.fingerprint:
        raise CaptioningError(
            f"resume={path}: that run has another encoder than {captioner.encoder.name} with "
            f"weights from {captioner.encoder.weights_source}: use the same encoder."
        )
    saved_spec = encoder_settings(checkpoint["hyper_parameters"].get("encoder"))
    spec = encoder_settings(captioner.hparams.get("encoder"))
    changed = sorted(name for name in saved_spec.keys() & spec if saved_spec[name] != spec[name])
    if changed:  # the fingerprint covers the weights only
        raise CaptioningError(
            f"resume={path}: that run has another encoder, with encoder.{changed[0]}="
            f"{saved_spec[changed[0]]} in place of {spec[changed[0]]}: use the same encoder."
        )
    shapes = {name: tensor.shape for name, tensor in captioner.state_dict().items()}
    saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    if shapes != saved:
        different = sorted(shapes.items() ^ saved.items())
        raise CaptioningError(
            f"resume={path}: that run has another model ({different[0][0]} differs): use the "
            "same model.* settings."
        )


def encoder_settings(spec: Any) -> dict[str, Any]:
    """The settings of an encoder, except ``weights``, since that file may have been moved."""
    settings = dict(spec) if isinstance(spec, Mapping) else {}
    return {name: value for name, value in settings.items() if name != "weights"}

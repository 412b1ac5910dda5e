"""Starting a run from the weights of another: ``init_from=PATH``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioning.captioner import Captioner
from captioning.checkpoints import (
    first_difference,
    has_trained_encoder,
    read_checkpoint,
    restoring,
)
from captioning.data.text import Vocabulary
from captioning.pretrained.places import find_model, size_of
from captioning.support.errors import CaptioningError


def initial_vocabulary(init_from: str | None, resume: str | None) -> Vocabulary | None:
    """The vocabulary of a run with ``init_from``, which is that of its checkpoint.

    Args:
        init_from: the checkpoint whose weights the run starts from.
        resume: the checkpoint from which the run continues, which has the same vocabulary.

    Raises:
        CaptioningError: the file is not a checkpoint.
    """
    if init_from is None:
        return None
    path, key = (resume, "resume") if resume else (init_from, "init_from")
    return Vocabulary(read_checkpoint(path, key)["hyper_parameters"]["vocabulary"])


def initialize(captioner: Captioner, path: str | Path) -> None:
    """Copy the weights of a checkpoint, but not the state of its optimiser, schedule or objective.

    Args:
        captioner: with the vocabulary, the model and the encoder of the checkpoint.
        path: the checkpoint.

    Raises:
        CaptioningError: the file is not a checkpoint, or its model or encoder is another one.
    """
    checkpoint = read_checkpoint(path, "init_from")
    reads = checkpoint["encoder"]["fingerprint"]
    if not has_trained_encoder(checkpoint) and reads != captioner.encoder.fingerprint:
        raise CaptioningError(
            f"init_from={path}: that model reads the grids of another encoder than "
            f"{captioner.encoder.name} with weights from {captioner.encoder.weights_source}: use "
            "the same encoder."
        )
    given = _weights(checkpoint["state_dict"])
    different = first_difference(_weights(captioner.state_dict()), given)
    if different is not None:
        raise CaptioningError(
            f"init_from={path}: that run has another model ({different} differs): use the "
            "same model.* settings, and the same encoder.trainable."
        )
    with restoring(f"init_from={path}", size_of(find_model(path, "init_from"))):
        captioner.load_state_dict(given, strict=False)


def _weights(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of decoder and encoder; a new objective starts afresh."""
    return {name: value for name, value in state_dict.items() if not name.startswith("objective.")}

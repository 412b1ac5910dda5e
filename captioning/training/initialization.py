"""Starting a run from the weights of another: ``init_from=PATH``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from captioning.captioner import Captioner
from captioning.checkpoints import first_difference, read_checkpoint, restoring
from captioning.data.text import Vocabulary
from captioning.support.errors import CaptioningError
from captioning.support.weights import fingerprint

ENCODER: Final = "trainable_encoder."
"""What the names of the weights of a trained encoder begin with in a checkpoint."""


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

    ``encoder.trainable`` may be another one than that of the checkpoint's run: a decoder that was
    trained on stored features can then be trained together with its encoder, and afterwards alone
    again, on the features of the encoder as it has become.

    Args:
        captioner: with the vocabulary, the model and the encoder of the checkpoint.
        path: the checkpoint.

    Raises:
        CaptioningError: the file is not a checkpoint, or its model or encoder is another one.
    """
    checkpoint = read_checkpoint(path, "init_from")
    frozen, own = checkpoint["encoder"]["state_dict"], checkpoint["state_dict"]
    trained = {
        name.removeprefix(ENCODER): value for name, value in own.items() if name.startswith(ENCODER)
    }
    encoder = captioner.encoder
    other_start = frozen and checkpoint["encoder"]["fingerprint"] != encoder.fingerprint
    if other_start or first_difference(encoder.state_dict(), frozen or trained) is not None:
        raise CaptioningError(
            f"init_from={path}: that model reads the grids of another encoder than "
            f"{encoder.name} with weights from {encoder.weights_source}: use the same encoder."
        )
    given = _decoder(own)
    different = first_difference(_decoder(captioner.state_dict()), given)
    if different is not None:
        raise CaptioningError(
            f"init_from={path}: that run has another model ({different} differs): use the "
            "same model.* settings."
        )
    with restoring(f"init_from={path}", Path(path).stat().st_size):
        captioner.load_state_dict(given, strict=False)
        if trained:
            source = f"{checkpoint['encoder']['weights_source']}, trained further by {path}"
            take_encoder(captioner, trained, source)


def take_encoder(captioner: Captioner, weights: Mapping[str, Tensor], source: str) -> None:
    """Give the encoder of a captioner other weights, by which its features are then found.

    Args:
        captioner: with an encoder of the same shapes.
        weights: the state dict.
        source: a description of where the weights come from.
    """
    encoder = captioner.encoder
    encoder.load_state_dict(weights)
    encoder.fingerprint = fingerprint(encoder.name, weights)
    encoder.weights_source = source


def _decoder(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without those of the encoder and of the objective, which starts afresh."""
    others = (ENCODER, "objective.")
    return {name: value for name, value in state_dict.items() if not name.startswith(others)}

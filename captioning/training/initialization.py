"""Starting a run from a trained model: ``init_from=CKPT``."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from captioning.captioner import Captioner
from captioning.captioners.choices import NAMES
from captioning.captioners.saving import encoder_of
from captioning.checkpoints import first_difference, read_checkpoint, restoring
from captioning.data.datamodule import CaptionDataModule
from captioning.data.vocabulary import Vocabulary, coverage
from captioning.models.decoders.base import Decoder
from captioning.models.encoders.base import GridEncoder
from captioning.support.build import build, expand, locate, parameters_of
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import SPECIAL_WORDS
from captioning.support.state_dicts import fingerprint
from captioning.support.trust import classes_of_a_checkpoint
from captioning.training.lineage import started_from

log = logging.getLogger(__name__)

ENCODER: Final = "trainable_encoder."
"""What the names of the weights of a trained encoder begin with in a checkpoint."""

AS_TRAINED = ("encoder", "model")
"""The groups whose choice ``as_trained``, an empty group, means that of the trained model."""


@dataclass(frozen=True)
class Initial:
    """A trained model from which a run starts.

    Attributes:
        source: the setting that names it, for messages, such as ``init_from=PATH``.
        checkpoint: its content, in the form of a checkpoint.
        size: the bytes of its file.
    """

    source: str
    checkpoint: Mapping[str, Any]
    size: int

    @property
    def vocabulary(self) -> Vocabulary:
        """Its vocabulary."""
        return Vocabulary(self.checkpoint["hyper_parameters"]["vocabulary"])


def read_initial(init_from: str | None, resume: str | None) -> Initial | None:
    """Read the model that a run starts from; None for a run without ``init_from``.

    Args:
        init_from: the checkpoint whose weights the run starts from.
        resume: the checkpoint from which the run continues, which is read in its place.

    Raises:
        CaptioningError: the file is not a checkpoint.
    """
    if init_from is None:
        return None
    path, key = (resume, "resume") if resume else (init_from, "init_from")
    checkpoint = read_checkpoint(path, key)
    size = sum(
        tensor.nbytes
        for state in (checkpoint["state_dict"], checkpoint["encoder"]["state_dict"])
        for tensor in state.values()
    )
    return Initial(f"{key}={path}", checkpoint, size)


def with_trained_parts(config: Mapping[str, Any], initial: Initial | None) -> dict[str, Any]:
    """A configuration in which ``model=as_trained`` and ``encoder=as_trained`` are filled in.

    Settings that are added to such a group (``+model.dropout=0.3``) precede those of the model.

    Args:
        config: the configuration.
        initial: the model whose settings are taken.

    Raises:
        CaptioningError: there is no such model, or its settings name classes of other packages.
    """
    open_groups = [group for group in AS_TRAINED if "_target_" not in config[group]]
    if not open_groups:
        return dict(config)
    if initial is None:
        raise CaptioningError(
            f"{open_groups[0]}=as_trained needs init_from=CKPT, the trained model whose "
            f"{open_groups[0]} is meant."
        )
    with restoring(initial.source, initial.size), classes_of_a_checkpoint(()):
        trained = _trained_parts(initial)
    return {**config} | {group: {**trained[group]} | config[group] for group in open_groups}


def _trained_parts(initial: Initial) -> dict[str, dict[str, Any]]:
    """The settings of the encoder and of the decoder of a model.

    Both are built, which checks that these settings are valid and name no code of anybody else's;
    but the decoder needs no more of the encoder than its number of channels, so that no weights are
    read.
    """
    settings = initial.checkpoint["hyper_parameters"]
    encoder, _ = encoder_of(initial.checkpoint)
    model = expand(settings.get("model", "attn_lstm"), NAMES["model"], "model")
    target = locate(str(encoder.get("_target_") or ""), GridEncoder, "encoder")
    unread = {"weights": "random"} if "weights" in parameters_of(target)[0] else {}
    channels = build(encoder | unread, GridEncoder, "encoder").channels
    words = len(initial.vocabulary)
    build(model, Decoder, "model", vocabulary_size=words, channels=channels)
    return {"encoder": encoder, "model": model}


def initialize(captioner: Captioner, initial: Initial) -> None:
    """Copy the weights of a model, but not the state of its optimiser, schedule or objective.

    A captioner may have more words than the model, after those of the model. The rows of an
    embedding or output matrix for each of them become the mean of those of the model's words, and
    the model's own rows stay as they are. As Hewitt (2021, "Initializing New Word Embeddings for
    Pretrained Language Models") shows, the model then hardly gives the new words any probability
    before it has learned them, and all others almost the one they had. The captioner's ``run`` says
    which parameters have such rows, and from which row on, as ``new_rows``; and what the model has
    learned from (:mod:`captioning.training.lineage`).

    ``encoder.trainable`` may be another one than that of the model's run: a decoder that was
    trained on stored features can then be trained together with its encoder, and afterwards alone
    again, on the features of the encoder as it has become.

    Args:
        captioner: with the model, the encoder and all words of the checkpoint.
        initial: the model.

    Raises:
        CaptioningError: its model or encoder is another one.
    """
    saved, own = initial.checkpoint["encoder"], initial.checkpoint["state_dict"]
    trained = {
        name.removeprefix(ENCODER): value for name, value in own.items() if name.startswith(ENCODER)
    }
    encoder, contained = captioner.encoder, saved["state_dict"] or trained
    other_start = not trained and saved["fingerprint"] != encoder.fingerprint
    if other_start or (contained and first_difference(encoder.state_dict(), contained) is not None):
        raise CaptioningError(
            f"{initial.source}: that model reads the grids of another encoder than "
            f"{encoder.name} with weights from {encoder.weights_source}: use encoder=as_trained, "
            "or the same encoder."
        )
    words = initial.vocabulary.words
    if captioner.vocabulary.words[: len(words)] != words:
        raise CaptioningError(
            f"{initial.source}: that model has another vocabulary ({len(words)} words), to which "
            "words can only be added."
        )
    expected = _decoder(captioner.state_dict())
    given = {
        name: _with_new_rows(tensor, expected.get(name), len(SPECIAL_WORDS) + len(words))
        for name, tensor in _decoder(own).items()
    }
    different = first_difference(expected, given)
    if different is not None:
        raise CaptioningError(
            f"{initial.source}: that run has another model ({different} differs): use "
            "model=as_trained, or the same model.* settings."
        )
    own_rows = {name: len(own[name]) for name in given if own[name].shape != given[name].shape}
    captioner.run = started_from(captioner.run, initial.checkpoint["run"])
    captioner.run = captioner.run | ({"new_rows": own_rows} if own_rows else {})
    with restoring(initial.source, initial.size):
        captioner.load_state_dict(given, strict=False)
        if trained:
            source = f"{saved['weights_source']}, trained further ({initial.source})"
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
    encoder.weights = encoder.weights_source = source  # not a name any more


def _with_new_rows(tensor: Tensor, expected: Tensor | None, before: int) -> Tensor:
    """A parameter with one row for each word, with mean rows for words that it lacks."""
    if (
        expected is None
        or tensor.ndim == 0
        or len(tensor) != before
        or tensor.shape[1:] != expected.shape[1:]
        or len(expected) <= before
    ):
        return tensor
    mean = tensor[len(SPECIAL_WORDS) :].mean(0, keepdim=True)
    new = mean.expand(len(expected) - before, *tensor.shape[1:])
    return torch.cat([tensor, new])


def say_unknown_words(initial: Initial, data: CaptionDataModule, *, add_words: bool) -> None:
    """Log how many words of the training captions a model does not know.

    Args:
        initial: the model.
        data: the data, whose text has been read.
        add_words: whether they have been added.
    """
    captions = [text for texts in data.documents().values() for text in texts]
    known, different, share = coverage(initial.vocabulary, captions)
    if known < different and not add_words:
        log.warning(
            "Data: %d of the %d different words of the training captions are not in the vocabulary "
            "of %s (%.1f %% of all words); they are read as <unk>, and add_words=true adds them.",
            *(different - known, different, initial.source, 100 * (1 - share)),
        )


def _decoder(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without those of the encoder and of the objective, which starts afresh."""
    others = (ENCODER, "objective.")
    return {name: value for name, value in state_dict.items() if not name.startswith(others)}

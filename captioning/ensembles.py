"""A captioner of one checkpoint or of several, whose decoders then write captions together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.captioner import Captioner
from captioning.kernels.backend import Backend
from captioning.models.decoders.ensemble import Ensemble
from captioning.support.errors import CaptioningError
from captioning.support.weights import fingerprint


def load_captioner(
    ckpt: str | Path | Sequence[str | Path],
    backend: Backend = "auto",
    trust: str | Sequence[str] | None = None,
) -> Captioner:
    """Load the captioner of a checkpoint, or of several of one vocabulary and one encoder.

    Several have one encoder, and an :class:`~captioning.models.decoders.ensemble.Ensemble` of their
    decoders. Such a captioner is for writing captions; it cannot be saved as a checkpoint. Its
    ``run`` has the settings that all members were trained with, without the seed, and their reward.

    Args:
        ckpt: the file, or the files.
        backend: as for :meth:`Captioner.load_from_checkpoint`.
        trust: as for :meth:`Captioner.load_from_checkpoint`.

    Raises:
        CaptioningError: a file cannot be loaded; or has another vocabulary, encoder, preprocessing
            or grid than the first one.
    """
    paths = [ckpt] if isinstance(ckpt, str | Path) else list(ckpt)
    if not paths:
        raise CaptioningError("ckpt=[] is empty: give at least one checkpoint.")
    first = Captioner.load_from_checkpoint(paths[0], backend=backend, trust=trust)
    if len(paths) == 1:
        return first
    members = [first]
    for path in paths[1:]:
        member = Captioner.load_from_checkpoint(path, backend=backend, trust=trust)
        check_same_input(first, member, f"ckpt={path}", str(paths[0]))
        members.append(member)
    configs = [member.run["config"] for member in members if "config" in member.run]
    rewards = {member.objective.reward_signature for member in members}
    first.decoder = Ensemble([member.decoder for member in members])
    first.run = {"name": f"ensemble of {len(paths)}"}
    if len(rewards) == 1 and None not in rewards:
        first.run["reward"] = rewards.pop()
    if len(configs) == len(members):
        shared = shared_settings(configs)
        first.run["config"] = {key: value for key, value in shared.items() if key != "seed"}
    return first


def check_same_input(
    first: Captioner, other: Captioner, name: str, first_name: str, *, fewer_words: bool = False
) -> None:
    """Check that two captioners read the same grids and write the same words.

    Args:
        first: the first member.
        other: another member.
        name: the setting and file of ``other``, for messages.
        first_name: the file of ``first``.
        fewer_words: whether ``other`` may lack the last words of ``first``.

    Raises:
        CaptioningError: they do not.
    """
    a, b = first.encoder, other.encoder
    words = first.vocabulary.to_list()
    shared = words[: len(other.vocabulary.words)] if fewer_words else words
    if other.vocabulary.to_list() != shared:
        what = "another vocabulary"
    elif weights_of(other) != weights_of(first):
        what = f"another encoder ({b.name} with weights from {b.weights_source})"
    elif b.preprocessing != a.preprocessing:
        what = f"another preprocessing of the pictures ({b.preprocessing})"
    elif (b.grid_size, b.channels) != (a.grid_size, a.channels):
        what = f"another grid ({b.grid_size[0]} x {b.grid_size[1]} x {b.channels})"
    else:
        return
    raise CaptioningError(
        f"{name}: this checkpoint has {what} than {first_name}, with which it works together: both "
        "must have the same."
    )


def weights_of(captioner: Captioner) -> str:
    """The fingerprint of the encoder's weights as they are, also of an encoder that was trained."""
    encoder = captioner.encoder
    if captioner.encoder_trains:  # its own is that of the weights from which it started
        return fingerprint(encoder.name, encoder.state_dict())
    return encoder.fingerprint


def is_ensemble(captioner: Captioner) -> bool:
    """Whether a captioner has several decoders, which write captions together."""
    return isinstance(captioner.decoder, Ensemble)


def shared_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that have the same value in all configurations."""
    first, *others = configs
    shared: dict[str, Any] = {}
    for key, value in first.items():
        if not all(key in other for other in others):
            continue
        values = [value, *(other[key] for other in others)]
        if all(isinstance(each, Mapping) for each in values):
            shared[key] = shared_settings(values)
        elif all(each == value for each in values):
            shared[key] = value
    return shared

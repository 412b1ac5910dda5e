"""A captioner of one checkpoint or of several, whose decoders then write captions together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from captioning.captioner import Captioner
from captioning.data.views import ORIGINAL
from captioning.kernels.backend import Backend
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.decoders.joint import JointEnsemble
from captioning.models.decoders.views import ViewDecoder
from captioning.models.encoders.joint import JointEncoder
from captioning.support.errors import CaptioningError
from captioning.support.state_dicts import fingerprint


def load_captioner(
    ckpt: str | Path | Sequence[str | Path],
    backend: Backend = "auto",
    trust: str | Sequence[str] | None = None,
) -> Captioner:
    """Load the captioner of a checkpoint, or of several of one vocabulary.

    Several have an :class:`~captioning.models.decoders.ensemble.Ensemble` of their decoders. If
    they read grids of different encoders, the captioner has a
    :class:`~captioning.models.encoders.joint.JointEncoder` of these. Such a captioner is for
    writing captions; it cannot be saved as a checkpoint. Its ``run`` has the settings that all
    members were trained with, without the seed, their reward, and the ``run`` of each as
    ``members``.

    Args:
        ckpt: the file, or the files.
        backend: as for :meth:`Captioner.load_from_checkpoint`.
        trust: as for :meth:`Captioner.load_from_checkpoint`.

    Raises:
        CaptioningError: a file cannot be loaded; or has another vocabulary than the first one, or
            an encoder that sees another part of the picture.
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
        if member.vocabulary.to_list() != first.vocabulary.to_list():
            raise _not_together(f"ckpt={path}", "another vocabulary", str(paths[0]))
        if member.encoder.preprocessing.resize != first.encoder.preprocessing.resize:
            what = (
                f"an encoder that sees another part of a picture ({member.encoder.preprocessing})"
            )
            raise _not_together(f"ckpt={path}", what, str(paths[0]))
        members.append(member)
    configs = [member.run["config"] for member in members if "config" in member.run]
    rewards = {member.objective.reward_signature for member in members}
    join(members)
    first.run = {"name": f"ensemble of {len(paths)}", "members": [each.run for each in members]}
    if len(rewards) == 1 and None not in rewards:
        first.run["reward"] = rewards.pop()
    if len(configs) == len(members):
        shared = shared_settings(configs)
        first.run["config"] = {key: value for key, value in shared.items() if key != "seed"}
    return first


def join(members: Sequence[Captioner]) -> None:
    """Give the first of several captioners the decoders and encoders of all.

    Args:
        members: captioners of one vocabulary.
    """
    first = members[0]
    distinct = [first]  # one captioner of each encoder
    encoders: list[int] = []  # the place in it of each member's encoder
    for member in members:
        same = (n for n, other in enumerate(distinct) if not _difference(other, member))
        place = next(same, len(distinct))
        if place == len(distinct):
            distinct.append(member)
        encoders.append(place)
    if len(distinct) == 1:
        first.decoder = Ensemble([member.decoder for member in members])
        return
    joint = JointEncoder([member.network for member in distinct])
    parts = [joint.parts[n] for n in encoders]
    first.replace_encoder(joint)
    first.decoder = JointEnsemble(
        [
            _looking_at(member.decoder, part.grid_size, joint.grid_size)
            for member, part in zip(members, parts, strict=True)
        ],
        parts,
    )


def _looking_at(decoder: Decoder, own: tuple[int, int], drawn: tuple[int, int]) -> Decoder:
    """A decoder whose attention over a grid of one size is drawn on a grid of another.

    Each location of a coarser grid is shared among the locations that it covers.
    """
    if own == drawn:
        return decoder
    return ViewDecoder(decoder, torch.from_numpy(ORIGINAL.placement(own, drawn)))


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
    words = first.vocabulary.to_list()
    shared = words[: len(other.vocabulary.words)] if fewer_words else words
    if other.vocabulary.to_list() != shared:
        raise _not_together(name, "another vocabulary", first_name)
    if different := _difference(first, other):
        raise _not_together(name, different, first_name)


def _difference(first: Captioner, other: Captioner) -> str | None:
    """What differs between the grids that two captioners read; None if they are the same."""
    a, b = first.encoder, other.encoder
    if weights_of(other) != weights_of(first):
        return f"another encoder ({b.name} with weights from {b.weights_source})"
    if b.preprocessing != a.preprocessing:
        return f"another preprocessing of the pictures ({b.preprocessing})"
    if (b.grid_size, b.channels) != (a.grid_size, a.channels):
        return f"another grid ({b.grid_size[0]} x {b.grid_size[1]} x {b.channels})"
    return None


def _not_together(name: str, what: str, first_name: str) -> CaptioningError:
    return CaptioningError(
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

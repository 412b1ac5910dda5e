"""Writing the folder of a model to give away, in the layout of the Hugging Face hub."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from captioning.captioner import Captioner
from captioning.captioners.saving import without_vocabulary
from captioning.checkpoints import FORMAT
from captioning.ensembles import is_ensemble
from captioning.evaluation.records import plain
from captioning.pretrained.card import model_card, terms
from captioning.pretrained.folder import FROZEN, Config, EncoderRecord, InputRecord
from captioning.pretrained.places import CARD, CONFIG, LICENCE, VOCABULARY, WEIGHTS
from captioning.reporting.results import Results
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes, atomic_write_json, atomic_write_text
from captioning.support.settings import WHERE_DATA_LIES, without
from captioning.support.weights import BY_NAME

_PLACES: Final = {
    "data": WHERE_DATA_LIES,
    "callbacks": ..., "logger": ..., "resume": ..., "init_from": ..., "spice_files": ...,
    "clip_weights": ..., "trust": ...,
}  # fmt: skip
"""What the configuration of a run has about the computer that trained it; ... is a whole group."""


def save(
    captioner: Captioner,
    folder: Path,
    *,
    half: bool = True,
    encoder: bool = False,
    results: Results | None = None,
    license: str = "other",
) -> None:
    """Write ``model.safetensors``, ``config.json``, ``vocabulary.json`` and ``README.md``.

    Without a licence, the terms of the training data are in ``LICENSE.md``, unless there is such a
    file already, which may be yours.

    The weights are those of the decoder and the objective, and of an encoder that was trained. A
    frozen encoder goes by the name and the fingerprint of its weights; only if they came from a
    file are they contained.

    Args:
        captioner: the model.
        folder: is made if it is missing; files of an earlier model in it are replaced.
        half: whether the weights are rounded to half precision, where its range allows. Those of a
            frozen encoder are not, because its fingerprint would change.
        encoder: whether a frozen encoder is contained even if its weights have a name, for
            computers that cannot fetch them.
        results: the scores for the model card.
        license: the hub's identifier of the licence of the weights, such as ``cc-by-4.0``.

    Raises:
        CaptioningError: the folder cannot be written, or the captioner is an ensemble.
    """
    if is_ensemble(captioner):
        raise CaptioningError("An ensemble is several models: export each of them.")
    weights, shared = _without_copies(captioner.state_dict())
    if half:
        weights = {name: rounded(tensor) for name, tensor in weights.items()}
    frozen = captioner.encoder
    if not captioner.encoder_trains and (encoder or frozen.weights not in BY_NAME):
        weights |= {f"{FROZEN}{name}": value for name, value in frozen.state_dict().items()}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    config = config_of(captioner, shared)
    card = model_card(captioner, folder.name, results, license)
    atomic_write_bytes(folder / WEIGHTS, to_safetensors(content, {"format": "pt"}))
    captioner.vocabulary.save(folder / VOCABULARY)
    atomic_write_text(folder / CARD, card)
    if license == "other" and not (folder / LICENCE).exists():
        atomic_write_text(folder / LICENCE, terms(captioner, results))
    atomic_write_json(folder / CONFIG, config.model_dump())  # the last: a whole model has it


def rounded(tensor: Tensor) -> Tensor:
    """A tensor in half precision, or as it is if it is of integers or beyond that range."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if half.isfinite().all() else tensor


def config_of(captioner: Captioner, shared: Mapping[str, str]) -> Config:
    """The ``config.json`` of a captioner.

    Args:
        captioner: the model.
        shared: names of weights that are the same tensor as another one, by that other name.
    """
    encoder = captioner.network
    settings: dict[str, Any] = plain(without_vocabulary(captioner.hparams))
    if encoder.weights not in BY_NAME:
        settings["encoder"]["weights"] = "contained"
    run = {**captioner.run, "config": _without_places(captioner.run.get("config", {}))}
    pixels = encoder.preprocessing
    return Config(
        captioning_version=metadata.version("captioning"),
        format=FORMAT,
        settings=settings | {"backend": "auto"},
        encoder=EncoderRecord(
            name=encoder.name,
            weights_source=encoder.weights_source
            if encoder.weights in BY_NAME
            else "a file, whose weights the model contains",
            fingerprint=encoder.fingerprint,
        ),
        input=InputRecord(
            size=pixels.size,
            resize=pixels.resize,
            resampling=pixels.resampling.name,
            mean=list(pixels.mean),
            std=list(pixels.std),
        ),
        run=plain(run),
        shared=dict(shared),
    )


def _without_copies(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights, each tensor once, and the names of the others by that of the first.

    An output layer can have the embeddings' matrix, for example.
    """
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    kept, shared = {}, {}
    for name, tensor in weights.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        original = first.setdefault(place, name) if tensor.numel() else name
        if original == name:
            kept[name] = tensor
        else:
            shared[name] = original
    return kept, shared


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run without files and folders of the computer that trained it."""
    kept = without(config, _PLACES)
    encoder = kept.get("encoder")
    if isinstance(encoder, dict) and encoder.get("weights", BY_NAME[0]) not in BY_NAME:
        kept["encoder"] = encoder | {"weights": "contained"}
    return kept

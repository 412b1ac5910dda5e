"""Writes the ``results.json`` of a run, from the scores of each split."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.data.views import ORIGINAL_ALONE
from captioning.decoding import Decoding
from captioning.ensembles import is_ensemble
from captioning.kernels.backend import Backend, report
from captioning.metrics.grounding import Grounding
from captioning.metrics.language import Language
from captioning.metrics.tokenizer import TOKENIZATION
from captioning.reporting import measures, provenance, results
from captioning.reporting.arithmetic import Arithmetic
from captioning.reporting.gallery import GalleryImage
from captioning.support.own_code import own_code


@dataclass(frozen=True)
class Scored:
    """The scores of one split; for the fields see :class:`captioning.reporting.results.Results`."""

    corpus: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    references: str
    language: Language
    objects: Grounding | None
    gallery: list[GalleryImage]


def without_metrics(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which captions depend, without the words of the vocabulary."""
    unused = ("extra_metrics", "vocabulary")
    return {name: value for name, value in settings.items() if name not in unused}


def identify(
    data: CaptionDataModule, images: dict[str, int], found: Mapping[str, Scored]
) -> results.Data:
    """Describe the data that was scored, for ``results.json``."""
    return results.Data(
        name=data.data_name,
        fingerprint=data.corpus.fingerprint,
        images=images,
        references={split: scored.references for split, scored in found.items()},
        tokenization=TOKENIZATION,
    )


def arithmetic_of(trainer: pl.Trainer, backend: Backend) -> Arithmetic:
    """Precision, device, backend and threads of a Trainer, with each ``auto`` resolved."""
    device = trainer.strategy.root_device
    return Arithmetic.of(
        precision=str(trainer.precision),
        device=str(device),
        backend=backend,
        ops=report(device.type, backend),
        threads=torch.get_num_threads(),
    )


def decoder_name(target: str) -> str:
    """The name of a decoder in tables: that of its module in this package, or else of its class.

    Args:
        target: the dotted path of the decoder's class.
    """
    module, _, name = target.rpartition(".")
    return module.rpartition(".")[2] if module.startswith("captioning.") else name


def decoding_name(class_name: str) -> str:
    """The name of a way of decoding in tables: ``diverse_beam`` for ``DiverseBeam``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_name).lower()


def parts_of(captioner: Captioner) -> dict[str, nn.Module]:
    """The parts whose parameters are counted; an attention is counted with its decoder."""
    parts: dict[str, nn.Module] = {"encoder": captioner.encoder, "decoder": captioner.decoder}
    if not is_ensemble(captioner):  # whose members have one each
        parts["objective"] = captioner.objective
    return parts


def write_record(
    folder: Path,
    config: Mapping[str, Any],
    name: str,
    command: str,
    captioner: Captioner,
    data: results.Data,
    decoding: Decoding,
    found: Mapping[str, Scored],
    seconds: dict[str, float],
    arithmetic: Arithmetic,
    training: dict[str, Any] | None = None,
    views: Sequence[str] = ORIGINAL_ALONE,
) -> results.Results:
    """Write ``results.json``.

    Args:
        folder: the folder of the run.
        config: the resolved configuration.
        name: the name of the run on the leaderboard.
        command: the command line that repeats the run.
        captioner: the model that was scored.
        data: the data that was scored; see :func:`identify`.
        decoding: how its captions were decoded.
        found: the scores of each split.
        seconds: the time that each part of the run took, in seconds.
        arithmetic: precision, device, backend and threads; see :func:`arithmetic_of`.
        training: the configuration of the training, if a checkpoint was evaluated; of several
            checkpoints, the settings that all of them share.
        views: the names of the views from which each image was captioned.
    """
    hparams: Any = captioner.hparams
    target = hparams["model"]["_target_"]
    model = "ensemble" if is_ensemble(captioner) else decoder_name(target)
    written = results.Results(
        name=name,
        command=command,
        config={key: plain(value) for key, value in config.items()},
        data=data,
        vocabulary=results.Vocabulary(
            size=len(captioner.vocabulary), fingerprint=captioner.vocabulary.fingerprint
        ),
        encoder=results.Encoder.model_validate(
            {
                "name": captioner.encoder.name,
                "fingerprint": captioner.encoder.fingerprint,
                "weights_source": captioner.encoder.weights_source,
                "resize": captioner.encoder.preprocessing.resize,
            }
        ),
        model=results.Model.of(model, parts_of(captioner)),
        arithmetic=arithmetic,
        versions=provenance.versions(),
        commit=provenance.commit(),
        own_code=own_code(*(without_metrics(each) for each in (config, training or {}, hparams))),
        seconds=seconds,
        scores={split: scored.corpus for split, scored in found.items()},
        intervals={split: scored.intervals for split, scored in found.items()},
        language={
            split: measures.Language(**asdict(scored.language)) for split, scored in found.items()
        },
        objects={
            split: measures.Objects(**asdict(scored.objects))
            for split, scored in found.items()
            if scored.objects
        },
        decoding=results.Decoding.model_validate(
            {"name": decoding_name(type(decoding).__name__)} | plain(asdict(decoding))
        ),
        training=training,
        views=results.Views(
            train=(config if training is None else training).get("data", {}).get("train_views"),
            evaluation=list(views),
        ),
        reward=captioner.run.get("reward")
        if is_ensemble(captioner)
        else captioner.objective.reward_signature,
        free_running=True,  # `Captioner.test_step` decodes without teacher forcing
    )
    results.write_results(folder / "results.json", written)
    return written


def plain(value: Any) -> Any:
    """Convert a value to plain data for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value

"""The work of ``eval.py ckpt=PATH``: decode a split with a checkpoint, score and record it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.data.views import ORIGINAL_ALONE
from captioning.decoding import Decoding
from captioning.ensembles import load_captioner
from captioning.evaluation.captions_file import EvalSettings
from captioning.evaluation.extra_metrics import ExtraMetrics
from captioning.evaluation.records import Scored, arithmetic_of, identify, write_record
from captioning.kernels.backend import check_backend
from captioning.metrics import METRICS
from captioning.metrics.bootstrap import intervals
from captioning.metrics.grounding import ground
from captioning.metrics.language import describe_each, describe_language
from captioning.metrics.torchmetric import CaptionScores
from captioning.reporting import per_image
from captioning.reporting.gallery import GalleryImage
from captioning.reporting.report import write_report
from captioning.reporting.terminal import show_results
from captioning.support.build import build
from captioning.support.memory import keep_freed_memory
from captioning.support.progress import Clock
from captioning.support.special_tokens import SPECIAL_WORDS, UNK
from captioning.trainer import evaluation_trainer, interruptible, quieten


def evaluate(config: Mapping[str, Any], folder: Path, command: str) -> dict[str, dict[str, float]]:
    """Score a checkpoint, or an ensemble of several, on a split.

    Args:
        config: the configuration, composed from ``conf/eval.yaml``.
        folder: the folder for ``results.json`` and the captions.
        command: the command line, for ``results.json``.

    Returns:
        ``{split: {metric: score}}``.
    """
    quieten()
    keep_freed_memory()
    settings = EvalSettings.of(config)
    decoding = build(config["decoding"], Decoding, "decoding")
    settings.prepare()
    assert settings.ckpt is not None  # without it, score_file is called
    captioner = load_captioner(settings.ckpt, backend=settings.backend, trust=settings.trust)
    decoding.check_words(captioner.decoder)
    tester = evaluation_trainer(config["trainer"], folder)
    check_backend(settings.backend, tester.strategy.root_device.type)
    data = build(config["data"], CaptionDataModule, "data", vocabulary=captioner.vocabulary)
    clock = Clock()
    with clock("data"):
        data.prepare_data()
        data.read_text()
    with clock("features"):
        data.open_features(captioner.encoder, [settings.split], settings.views)
    with clock(f"score {settings.split}"):
        found = score_split(
            tester, captioner, data, settings.split, decoding, folder, settings, settings.views
        )
    all_found: dict[str, Scored] = {settings.split: found}
    written = write_record(
        folder,
        config,
        settings.name or captioner.run["name"],
        command,
        captioner,
        identify(data, {settings.split: len(found.gallery)}, all_found),
        decoding,
        all_found,
        clock.seconds,
        arithmetic_of(tester, settings.backend),
        training=captioner.run.get("config"),
        views=settings.views,
    )
    write_report(folder, settings.split, found.gallery, training=training_folder(settings.ckpt))
    show_results(written, folder)
    return written.scores


def training_folder(ckpt: str | list[str]) -> Path | None:
    """The folder of the run that wrote a checkpoint, which has its learning curves.

    None if it is not known, as for several checkpoints.
    """
    if not isinstance(ckpt, str):
        return None
    # Training writes RUN/checkpoints/best.ckpt.
    checkpoints = Path(ckpt).resolve().parent
    return checkpoints.parent if checkpoints.name == "checkpoints" else None


def score_split(
    tester: pl.Trainer,
    captioner: Captioner,
    data: CaptionDataModule,
    split: str,
    decoding: Decoding,
    folder: Path,
    extra: ExtraMetrics,
    views: Sequence[str] = ORIGINAL_ALONE,
) -> Scored:
    """Decode a split without teacher forcing, and score it with all metrics.

    Writes ``captions_<split>.json`` and ``statistics_<split>.json``.

    Args:
        tester: a Trainer on one device; see :func:`captioning.trainer.evaluation_trainer`.
        captioner: the model.
        data: the data set, whose features are open for the split.
        split: ``train``, ``dev`` or ``test``.
        decoding: how captions are decoded.
        folder: where the files are written.
        extra: the metrics to compute in addition to the standard ones.
        views: the names of the views from which each image is captioned.
    """
    references = data.references(split)
    documents = data.documents()
    decoding.set_documents(documents)
    captioner.set_references(references, METRICS, decoding)
    with interruptible():
        tester.test(captioner, data.evaluation_dataloader(split, views), verbose=False)
    assert isinstance(captioner.caption_scores, CaptionScores)
    found, captions = captioner.caption_scores.scores(), captioner.caption_scores.captions
    photographs = {image.id: image.path for image in data.images(split)}
    found = extra.add_to(found, captions, references, photographs)
    train = [text for captions_of_image in documents.values() for text in captions_of_image]
    each = describe_each(captions, train=train, unknown=SPECIAL_WORDS[UNK])
    numbers = {image.id: image.number for image in data.images(split) if image.number is not None}
    per_image.write_captions(
        folder / f"captions_{split}.json", captions, found.per_image, each, numbers
    )
    per_image.write_statistics(folder / f"statistics_{split}.json", found.statistics)
    maps = {
        image: weights.reshape(-1, *captioner.encoder.grid_size).numpy()
        for image, weights in captioner.attention_maps.items()
    }
    gallery = [
        GalleryImage(
            id=image.id,
            path=image.path,
            references=image.captions,
            caption=captions[image.id],
            scores=found.per_image[image.id],
            attention=maps.get(image.id),
        )
        for image in data.images(split)
        if image.id in captions
    ]
    objects = ground(captions, maps, data.boxes)
    language = describe_language(
        list(captions.values()),
        train=train,
        vocabulary_size=len(captioner.vocabulary.words),
        unknown=SPECIAL_WORDS[UNK],
    )
    return Scored(
        corpus=found.corpus,
        intervals=intervals(found.statistics),
        references=found.statistics.references,
        language=language,
        objects=objects,
        gallery=gallery,
    )

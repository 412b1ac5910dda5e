"""``eval.py captions=FILE``: score the captions of any system, without a model."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from captioning.data.cleaning import Cleaner
from captioning.data.corpus import fingerprint
from captioning.data.names import composed, without_zeros
from captioning.data.references import References, read_references
from captioning.data.views import ORIGINAL_ALONE, find_views
from captioning.evaluation.extra_metrics import ExtraMetrics
from captioning.metrics import METRICS, CaptionScorer, intervals
from captioning.metrics.language import describe_each, describe_language
from captioning.metrics.tokenizer import TOKENIZATION
from captioning.reporting import measures, per_image, provenance, results
from captioning.reporting.gallery import GalleryImage
from captioning.reporting.report import write_report
from captioning.reporting.terminal import show_results
from captioning.support.build import own, validated
from captioning.support.errors import CaptioningError
from captioning.support.progress import Clock

log = logging.getLogger(__name__)

# The cleaner turns "<unk>", "[UNK]" and "UNK" into this word.
UNKNOWN = "unk"

HUMANS: Final = "humans"
"""What ``captions=`` is to score the references against each other, unless a file is called so."""


@dataclass(frozen=True)
class EvalSettings(ExtraMetrics):
    """The settings of ``conf/eval.yaml`` outside of its groups."""

    ckpt: str | list[str] | None = None
    captions: str | None = None
    references: str | None = None
    images: str | None = None
    subset: bool = False
    split: Literal["train", "dev", "test"] = "test"
    name: str | None = None
    backend: Literal["auto", "torch", "native"] = "auto"
    trust: str | list[str] | None = None
    views: tuple[str, ...] = ORIGINAL_ALONE

    @property
    def are_humans(self) -> bool:
        """Whether the references are scored against each other."""
        return self.captions == HUMANS and not Path(HUMANS).is_file()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "EvalSettings":
        """Check and return the settings of a whole configuration."""
        return cls(**validated(cls, own(config), "", set()))

    def __post_init__(self) -> None:
        super().__post_init__()
        views = find_views(self.views)
        if self.ckpt and self.captions:
            raise CaptioningError(
                f"ckpt={self.ckpt} and captions={self.captions} are both given: give only one of "
                "them."
            )
        if not self.ckpt and not self.captions:
            raise CaptioningError(
                "ckpt= is missing: give a run's checkpoints/best.ckpt; or score the captions of a "
                "file with captions=FILE.json references=FILE."
            )
        if self.captions and not self.references:
            what = (
                "the folder of the data set whose references are scored"
                if self.are_humans
                else f"the file with the reference captions of the images of {self.captions}"
            )
            raise CaptioningError(f"references= is missing: give {what}.")
        if self.are_humans and self.subset:
            raise CaptioningError(
                f"subset= is not valid with captions={HUMANS}, which scores the references of all "
                "images."
            )
        if self.captions and self.trust:
            raise CaptioningError("trust= is valid only with ckpt=, whose classes it is about.")
        if self.captions and not all(view.is_original for view in views):
            raise CaptioningError("views= is valid only with ckpt=, whose model sees the images.")
        if self.ckpt and (self.references or self.images or self.subset):
            raise CaptioningError(
                "references=, images= and subset= are valid only with captions=; a checkpoint is "
                "scored on the data set of data.root."
            )


def score_file(
    config: Mapping[str, Any], folder: Path, command: str
) -> dict[str, dict[str, float]]:
    """Score captions in COCO's result format against references.

    Writes ``results.json``, ``captions_<split>.json`` with each image's scores,
    ``statistics_<split>.json``, and ``report.html`` if the photographs are available.

    Args:
        config: the configuration, composed from ``conf/eval.yaml``.
        folder: the folder for all files that are written.
        command: the command line, for ``results.json``.

    Returns:
        ``{split: {metric: score}}``, equal to COCOEvalCap's on the same files.

    Raises:
        CaptioningError: a file cannot be read or is of another format, or an image is not in both.
    """
    settings = EvalSettings.of(config)
    assert settings.captions is not None
    assert settings.references is not None
    split, clock = settings.split, Clock()
    with clock("data"):
        references = read_references(settings.references, split, config["data"]["name"])
        captions = match_captions(Path(settings.captions), references, subset=settings.subset)
        # In the order of the references, like COCOEvalCap.
        chosen = {image: t for image, t in references.captions.items() if image in captions}
        photographs = find_photographs(references, list(chosen), settings.images)
    if settings.need_photographs and not photographs:
        raise CaptioningError(
            "images= is missing: one of extra_metrics needs the photographs; give their folder."
        )
    settings.prepare()
    with clock(f"score {split}"):
        scorer = CaptionScorer(chosen, METRICS)
        found = settings.add_to(scorer.score(captions), captions, chosen, photographs)
        cleaner = Cleaner()
        said = {image: cleaner(captions[image]) for image in chosen}
        train = None if references.train is None else {cleaner(t) for t in references.train}
        language = describe_language(list(said.values()), train=train, unknown=UNKNOWN)
    per_image.write_captions(
        folder / f"captions_{split}.json",
        {image: captions[image] for image in chosen},
        found.per_image,
        describe_each(said, train=train, unknown=UNKNOWN),
        references.numbers,
    )
    per_image.write_statistics(folder / f"statistics_{split}.json", found.statistics)
    written = results.Results(
        name=settings.name or Path(settings.captions).stem,
        command=command,
        config=own(config),
        data=results.Data(
            name=references.name,
            fingerprint=references.fingerprint
            if len(chosen) == len(references.captions)
            else fingerprint((image, split, texts) for image, texts in chosen.items()),
            images={split: len(chosen)},
            references={split: found.statistics.references},
            tokenization=TOKENIZATION,
        ),
        versions=provenance.versions(),
        commit=provenance.commit(),
        seconds=clock.seconds,
        scores={split: found.corpus},
        intervals={split: intervals(found.statistics)},
        language={split: measures.Language(**asdict(language))},
    )
    results.write_results(folder / "results.json", written)
    if photographs:
        gallery = [
            GalleryImage(
                id=image,
                path=photographs[image],
                references=texts,
                caption=captions[image],
                scores=found.per_image[image],
                attention=None,
            )
            for image, texts in chosen.items()
        ]
        write_report(folder, split, gallery)
    show_results(written, folder)
    return written.scores


def match_captions(path: Path, references: References, *, subset: bool = False) -> dict[str, str]:
    """Read captions in COCO's result format; returns them by the image ids of the references.

    Images may be named by an alias from the references, such as the ``cocoid`` of Karpathy's files,
    or by their file name without its extension, as in Flickr30k's results. Leading zeros of a
    number and the Unicode form of a name do not matter.

    Args:
        path: The file.
        references: The references of the images.
        subset: Whether images without a caption are left out, instead of being an error.

    Raises:
        CaptioningError: the file cannot be read, has another format, has two captions of an image
            or an image without references, or, unless ``subset``, lacks an image.
    """
    captions = per_image.read_captions(path)
    if not captions:
        raise CaptioningError(f"{path}: this file has no captions to score.")
    known = references.captions
    namings = [dict(zip(known, known, strict=True)), *references.aliases]
    namings += [_without_endings(names) for names in namings]
    naming = max(namings, key=lambda names: sum(image in names for image in captions))
    if not any(image in naming for image in captions):
        # Zero-padded numbers, or names in the other of Unicode's forms.
        namings = [_plain(names) for names in namings]
        plain = _plain({image: image for image in captions})
        naming = max(namings, key=lambda names: sum(image in names for image in plain))
        naming = {image: naming[name] for name, image in plain.items() if name in naming}
    found: dict[str, str] = {}
    for number, (image, caption) in enumerate(captions.items(), start=1):
        if naming.get(image) not in known:
            raise CaptioningError(
                f"{path}: entry {number}: the image {image} has no references in "
                f"{references.source}: remove the entry, or choose another file or split."
            )
        if naming[image] in found:
            raise CaptioningError(
                f"{path}: entry {number} is a second caption of image {naming[image]}; keep one."
            )
        found[naming[image]] = caption
    missing = [image for image in known if image not in found]
    if missing and not subset:
        raise CaptioningError(
            f"{path}: {len(missing):,} of the {len(known):,} images of {references.source} have no "
            f"caption, such as {missing[0]}: caption them all, or score the rest by subset=true."
        )
    if missing:
        log.info(
            "%s has captions of %d of the %d images: compare its scores on the same images only",
            *(path, len(found), len(known)),
        )
    return found


def _without_endings(names: Mapping[str, str]) -> dict[str, str]:
    """The aliases without file extensions; empty if two images would have the same name."""
    stems = {Path(name).stem: image for name, image in names.items()}
    return stems if len(stems) == len(names) else {}


def _plain(names: Mapping[str, str]) -> dict[str, str]:
    """The aliases without leading zeros, in Unicode's composed form; empty if two become equal."""
    plain = {without_zeros(composed(name)): image for name, image in names.items()}
    return plain if len(plain) == len(names) else {}


def find_photographs(
    references: References, images: list[str], folder: str | None
) -> dict[str, Path]:
    """The image files, from ``folder`` and its subfolders, or from the references' data set.

    Returns:
        The file of each image by its id; empty if there is neither a folder nor a data set.

    Raises:
        CaptioningError: ``folder`` is given and lacks an image.
    """
    if folder is None:
        at_hand = references.source.is_dir()
        return {image: references.files[image] for image in images} if at_hand else {}
    if not Path(folder).is_dir():
        raise CaptioningError(f"images={folder}: no such folder.")
    there: dict[str, Path] = {}
    for path in (Path(inside, name) for inside, _, names in os.walk(folder) for name in names):
        there[composed(path.name)] = there[composed(str(path.relative_to(folder)))] = path
    found: dict[str, Path] = {}
    for image in images:
        file = references.files.get(image, Path(image))
        name = next((n for n in map(composed, (str(file), file.name)) if n in there), None)
        if name is None:
            raise CaptioningError(
                f"images={folder}: the file {file.name} of image {image} is not here."
            )
        found[image] = there[name]
    return found

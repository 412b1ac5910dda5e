"""Published results of other systems, which are shown beside runs but not ranked."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from captioning.metrics.registry import BUILT_IN
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_yaml

_Text = Annotated[str, Field(min_length=1)]


class Published(BaseModel):
    """One published result.

    Attributes:
        name: the name of the system.
        source: the publication, with the table or page of the scores.
        unknown: details of the computation that the source does not give.
        data: the data set, as in ``data=NAME``.
        split: the split.
        images: number of images in the split.
        model: the kind of model and its encoder.
        decoding: the decoding method.
        scores: ``{metric: score}``, times 100 as in papers. Leave out METEOR unless it was computed
            by version 1.5 of the Java program; others, for example NLTK's, are not comparable.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: _Text
    source: _Text
    unknown: _Text | None = None
    data: _Text
    split: _Text = "test"
    images: PositiveInt
    model: _Text | None = None
    decoding: _Text | None = None
    scores: Annotated[dict[str, Annotated[FiniteFloat, Field(ge=0)]], Field(min_length=1)]

    @field_validator("scores")
    @classmethod
    def _known_metrics_times_100(cls, scores: dict[str, float]) -> dict[str, float]:
        for metric, score in scores.items():
            if metric not in BUILT_IN:
                raise ValueError(f"{metric} is not one of {', '.join(BUILT_IN)}")
            if score > 100 * BUILT_IN[metric].highest:
                raise ValueError(f"{metric} is {score:g}, above its highest value times 100")
        if max(scores.values()) <= 1:
            raise ValueError("all scores are at most 1, but must be times 100, as in papers")
        return scores

    def score(self, metric: str) -> float | None:
        """A score on the metric's own scale, as in runs; None if it is missing."""
        return self.scores[metric] / 100 if metric in self.scores else None

    @property
    def note(self) -> str:
        """A sentence with the source and the unknown details."""
        return f"{self.name}: {self.source}." + (
            f" Not known: {self.unknown}." * bool(self.unknown)
        )


def read_published(path: Path) -> list[Published]:
    """Read published results: a YAML or JSON list of `Published`.

    Raises:
        CaptioningError: the file cannot be read, or an entry is incomplete or invalid.
    """
    if path.is_dir():
        raise CaptioningError(
            f"{path}: cannot be read: it is a folder; give the folders of runs before --published"
        )
    content = load_yaml(path)
    if not isinstance(content, list):
        raise CaptioningError(f"{path}: published results must be a list of named entries")
    try:
        return TypeAdapter(list[Published]).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        number, *field = problem["loc"]
        where = f"entry {int(number) + 1}" + "".join(f", `{key}`" for key in field[:1])
        reason = problem["msg"].removeprefix("Value error, ")
        raise CaptioningError(f"{path}: {where}: {reason}") from None

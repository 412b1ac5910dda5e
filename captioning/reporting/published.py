"""Results that others published: shown beside runs, but not ranked with them."""

from pathlib import Path
from typing import Annotated

import yaml
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

_Text = Annotated[str, Field(min_length=1)]


class Published(BaseModel):
    """One published result.

    Attributes:
        name: what to call it.
        source: the publication, precise enough to find the figures.
        unknown: what the source does not tell about how they were computed.
        data: the data set, as in ``data=NAME``.
        split: the split of it.
        images: how many images that split has.
        model: what kind of model, and on what encoder.
        decoding: how captions were decoded.
        scores: ``{metric: score}``, times 100 as papers print them. A METEOR that is not version
            1.5 of the program (NLTK's is not) is another metric, and does not belong here.
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
                raise ValueError(f"{metric} is none of {', '.join(BUILT_IN)}")
            if score > 100 * BUILT_IN[metric].highest:
                raise ValueError(f"{metric} is {score:g}, above its highest value times 100")
        if max(scores.values()) <= 1:
            raise ValueError("all are 1 at most, but must be times 100, as papers print them")
        return scores

    def score(self, metric: str) -> float | None:
        """A score on the metric's own scale, as those of runs."""
        return self.scores[metric] / 100 if metric in self.scores else None

    @property
    def note(self) -> str:
        """Its source, and what is not known of it."""
        return f"{self.name}: {self.source}." + (
            f" Not known: {self.unknown}." * bool(self.unknown)
        )


def read_published(path: Path) -> list[Published]:
    """Read published results: a YAML or JSON list of `Published`.

    Raises:
        CaptioningError: the file cannot be read, or an entry lacks something or has it wrong.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        hint = "; name folders of runs before --published" if path.is_dir() else ""
        raise CaptioningError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CaptioningError(f"{path}: neither YAML nor JSON: {reason}") from None
    if not isinstance(content, list):
        raise CaptioningError(f"{path}: published results are a list, each with name and source")
    try:
        return TypeAdapter(list[Published]).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        number, *field = problem["loc"]
        where = f"entry {int(number) + 1}" + "".join(f", `{key}`" for key in field[:1])
        reason = problem["msg"].removeprefix("Value error, ")
        raise CaptioningError(f"{path}: {where}: {reason}") from None

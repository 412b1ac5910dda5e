"""What the records of a results file have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Name = Annotated[str, Field(min_length=1)]

# The rounding of a sum of floats may exceed 1 a little.
Share = Annotated[FiniteFloat, Field(ge=0, le=1 + 1e-6)]


class Record(BaseModel):
    """A strict record: a number in quotes and an unknown key are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

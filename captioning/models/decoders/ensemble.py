"""An ensemble: several decoders of one vocabulary that write one caption together."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.support.errors import CaptioningError


class Ensemble(Decoder):
    """Averages the members' probabilities of the next word, at every word of a search.

    All members read the same grid, unless a subclass overrides :meth:`grids`. The arithmetic mean
    is p(y) = sum_m p_m(y) / M; the geometric mean is the same sum of log-probabilities, normalised
    again. The attention weights are the mean of those of the members that have attention.

    Args:
        members: decoders of one vocabulary and one grid.
        mean: ``arithmetic`` or ``geometric``.

    Raises:
        CaptioningError: without members, with vocabularies of different sizes, or another mean.
    """

    members: Sequence[Decoder]

    def __init__(
        self,
        members: Sequence[Decoder],
        mean: Literal["arithmetic", "geometric"] = "arithmetic",
    ) -> None:
        super().__init__()
        sizes = {member.vocabulary_size for member in members}
        if len(sizes) != 1:
            raise CaptioningError(
                f"an ensemble needs models of one vocabulary, but theirs have {sorted(sizes)} words"
            )
        if mean not in ("arithmetic", "geometric"):
            raise CaptioningError(f"mean={mean}: choose arithmetic or geometric")
        self.members = nn.ModuleList(members)  # type: ignore[assignment]  # a sequence of its items
        self.mean = mean
        self.vocabulary_size = sizes.pop()
        self.words = members[0].words

    def grids(self, grid: Float[Tensor, "images locations channels"]) -> Sequence[Tensor]:
        """The grid that each member reads."""
        return [grid] * len(self.members)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        pairs = zip(self.members, self.grids(grid), strict=True)
        return _join([member.prepare(own) for member, own in pairs])

    def start(self, memory: Memory, captions: int) -> State:
        parts = self._split(memory)
        return _join([m.start(p, captions) for m, p in zip(self.members, parts, strict=True)])

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        parts = zip(self.members, self._split(state), self._split(memory), strict=True)
        steps = [member.step(tokens, own, images) for member, own, images in parts]
        looks = [step.attention for step in steps if step.attention is not None]
        attention = torch.stack(looks).mean(0) if looks else None
        return Step(
            self._average([step.logits for step in steps]),
            _join([step.state for step in steps]),
            attention,
        )

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        pairs = zip(self.members, self.grids(grid), strict=True)
        results = [member(own, tokens) for member, own in pairs]
        # The members may pack the tokens in any order.
        orders = [result.real_rows() for result in results]
        ordered = list(zip(results, orders, strict=True))
        first, order = ordered[0]
        coverage = [result.coverage for result in results if result.coverage is not None]
        return TeacherForced(
            self._average([result.logits[rows] for result, rows in ordered]),
            first.targets[order],
            first.positions[order],
            first.lengths,
            first.max_length,
            coverage=torch.stack(coverage).mean(0) if coverage else None,
        )

    def _average(self, logits: list[Tensor]) -> Tensor:
        """The logarithm of the mean probabilities."""
        log_probs = torch.stack([each.float().log_softmax(-1) for each in logits])
        if self.mean == "geometric":
            return log_probs.mean(0).log_softmax(-1)
        return log_probs.logsumexp(0) - math.log(len(logits))

    def _split(self, joined: dict[str, Any]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{} for _ in self.members]
        for key, value in joined.items():
            member, name = key.split(".", 1)
            parts[int(member)][name] = value
        return parts


def _join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary, whose keys begin with the number of the member."""
    return {f"{i}.{name}": value for i, part in enumerate(parts) for name, value in part.items()}

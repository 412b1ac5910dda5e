"""Cross entropy with the paper's doubly stochastic term."""

from typing import TYPE_CHECKING, Literal

from jaxtyping import Float, Int
from torch import Tensor

from captioning.kernels.ops import cross_entropy
from captioning.models.decoders.base import Decoder, TeacherForced
from captioning.objectives.base import Objective
from captioning.support.errors import CaptioningError

if TYPE_CHECKING:
    from captioning.data.datamodule import Batch


class CrossEntropy(Objective):
    """Mean cross entropy of the real tokens of a batch, and the doubly stochastic attention term.

    ``<end>`` is a real token, padding is not. The attention term is the mean, over the captions and
    the locations of a batch, of (1 - c_i / target)^2, where c_i is the attention weight of location
    i summed over the T words of its caption (Xu et al. 2015, eq. 14, sums over the locations and
    has target 1).

    Args:
        label_smoothing: share of the probability that is spread over all words.
        attention_penalty: weight of the attention term (lambda); 0 leaves the term out.
        coverage_target: ``one`` is the paper's target of 1 for each of P locations, which T words
            can reach only if T = P; ``uniform`` is the target T / P.
    """

    static = True

    def __init__(
        self,
        label_smoothing: float = 0.1,
        attention_penalty: float = 0.0,
        coverage_target: Literal["one", "uniform"] = "uniform",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1 or attention_penalty < 0:
            raise CaptioningError(
                f"objective.label_smoothing={label_smoothing} must be in [0, 1) and "
                f"objective.attention_penalty={attention_penalty} at least 0."
            )
        self.label_smoothing = label_smoothing
        self.attention_penalty = attention_penalty
        self.coverage_target = coverage_target

    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        return self.parts(decoder(batch.grid, batch.tokens))

    def parts(self, output: TeacherForced) -> dict[str, Tensor]:
        """The ``loss`` of a decoder's predictions, and its parts."""
        loss = cross_entropy(output.logits, output.targets, self.label_smoothing)
        parts = {"cross_entropy": loss, "loss": loss}
        if output.coverage is not None and self.attention_penalty:
            parts["attention_term"] = self.attention_term(output.coverage, output.lengths)
            parts["loss"] = loss + self.attention_penalty * parts["attention_term"]
        return parts

    def attention_term(
        self,
        coverage: Float[Tensor, "images captions locations"],
        lengths: Int[Tensor, "images captions"],
    ) -> Float[Tensor, ""]:
        """The mean of (1 - c_i / target)^2 over locations and real captions."""
        if self.coverage_target == "uniform":
            coverage = coverage * (coverage.shape[-1] / lengths.clamp(min=1)[..., None])
        # Missing captions are multiplied by 0, because selecting the others would synchronise with
        # the GPU.
        real = lengths > 0
        return (((1 - coverage) ** 2).mean(-1) * real).sum() / real.sum().clamp(min=1)

"""Knowledge distillation: a decoder learns the word probabilities of trained ones."""

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from captioning.decoding.base import evaluation_mode
from captioning.kernels.ops import at_least_single
from captioning.models.decoders.base import Decoder
from captioning.objectives.base import Objective
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import UNK

if TYPE_CHECKING:
    from captioning.data.datamodule import Batch


class Distillation(Objective):
    """Word-level knowledge distillation (Hinton et al. 2015; Kim and Rush 2016, section 3.1).

    At each word of the training captions, the student learns the teacher's probabilities of all
    words, given the same image and the same words before. The loss is::

        weight * CE(teacher, student) + (1 - weight) * CE(true words, student)

    where CE is the mean over the words of a batch of - sum_v q(v) log p(v). With a temperature t,
    the logits of both are divided by t in the first term, which is multiplied by t^2, so that its
    gradients keep their size.

    The student may have words that its teacher lacks, after those of the teacher: it is then taught
    without forgetting (Li and Hoiem 2016, "Learning without Forgetting"). The teacher reads such a
    word as ``<unk>``, and gives it no probability where a caption has another word. Where a caption
    has such a word, the teacher knows no better, and its term leaves the place out.

    ``train.py`` loads the teacher. In a notebook, give it by :meth:`learn_from`.

    Args:
        teachers: the checkpoint of a run, or of several, which teach as an ensemble. They have the
            encoder of the student, and its vocabulary or the first words of it.
        weight: of the teacher's term, from 0 to 1.
        temperature: t.
        label_smoothing: of the true words' term.

    Raises:
        CaptioningError: a value is out of range.
    """

    teacher_lacks_words: ClassVar[bool] = True
    no_teacher: ClassVar[str] = (
        "objective=distillation has no teacher: give the checkpoint of a trained model by "
        "objective.teachers=PATH, or of several by objective.teachers=[A,B]."
    )

    def __init__(
        self,
        teachers: str | list[str] | None = None,
        weight: float = 0.7,
        temperature: float = 1.0,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1 or temperature <= 0:
            raise CaptioningError(
                f"objective.weight={weight} must be in [0, 1] and "
                f"objective.temperature={temperature} greater than 0."
            )
        self.teachers = [teachers] if isinstance(teachers, str) else teachers or []
        self.weight = weight
        self.temperature = temperature
        self.true_words = CrossEntropy(label_smoothing)

    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        grid = batch.grid
        teacher = self.teacher(grid.device)
        known = teacher.vocabulary_size
        with evaluation_mode(teacher), torch.no_grad():
            taught = teacher(grid, batch.tokens.masked_fill(batch.tokens >= known, UNK))
            probabilities = self.scaled(taught.logits[taught.real_rows()]).softmax(-1)
        output = decoder(grid, batch.tokens)
        rows = output.real_rows()
        log_probs = self.scaled(output.logits[rows]).log_softmax(-1)[:, :known]
        distances = -(probabilities * log_probs).sum(-1)
        is_known = output.targets[rows] < known
        distance = (distances * is_known).sum() / is_known.sum().clamp(min=1) * self.temperature**2
        true = self.true_words.parts(output)["cross_entropy"]
        return {
            "teacher_cross_entropy": distance,
            "cross_entropy": true,
            "loss": self.weight * distance + (1 - self.weight) * true,
        }

    def scaled(self, logits: Float[Tensor, "tokens words"]) -> Float[Tensor, "tokens words"]:
        """Logits divided by the temperature, in single precision at least."""
        return at_least_single(logits) / self.temperature

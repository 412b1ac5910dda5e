"""Example of a new objective: cross entropy that rewards captions for not ending early.

python train.py --config-dir examples/conf experiment=scenes objective=length_bonus
"""

from torch import Tensor

from captioning.data.batch import Batch
from captioning.kernels.ops import cross_entropy
from captioning.models.decoders.base import Decoder
from captioning.objectives import Objective
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD


class LengthBonus(Objective):
    """Cross entropy minus a bonus for every word at which the caption goes on.

    The bonus of a word is log(1 - p(<end>)), the log-probability that the caption does not end
    there; the part ``length`` is its mean.

    Args:
        bonus: the weight of the term.
        label_smoothing: share of the probability that is spread over all words.
    """

    static = True  # every step has the same operations, so that CUDA graphs may replay them

    def __init__(self, bonus: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__()
        if bonus < 0:
            raise CaptioningError(f"objective.bonus={bonus}: choose 0 or more.")
        self.bonus = bonus
        self.label_smoothing = label_smoothing

    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        """The ``loss``, and its parts, which are logged as ``train/cross_entropy`` and so on."""
        output = decoder(batch.grid, batch.tokens)
        loss = cross_entropy(output.logits, output.targets, self.label_smoothing)
        goes_on = (output.targets != END) & (output.targets != PAD)
        end = output.logits.softmax(-1)[:, END]
        # p(<end>) may be rounded to 1, and the logarithm of 0 is not finite.
        bonuses = (1 - end).clamp(min=1e-6).log() * goes_on
        length = bonuses.sum() / goes_on.sum().clamp(min=1)
        return {"loss": loss - self.bonus * length, "cross_entropy": loss, "length": length}

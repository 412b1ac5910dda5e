"""An objective of one's own: cross entropy that rewards captions for not ending early.

python train.py --config-dir examples/conf objective=length_bonus experiment=scenes
"""

from torch import Tensor

from captioning.data.datamodule import Batch
from captioning.kernels.ops import cross_entropy
from captioning.models.decoders.base import Decoder
from captioning.objectives import Objective
from captioning.support.special_tokens import END, PAD


class LengthBonus(Objective):
    """Cross entropy minus a bonus for every word at which the caption goes on.

    The bonus of a word is log(1 - p(<end>)), the log-probability that the caption does not end
    there.

    Args:
        bonus: the weight of the term.
        label_smoothing: share of the probability that is spread over all words.
    """

    static = True

    def __init__(self, bonus: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.bonus = bonus
        self.label_smoothing = label_smoothing

    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        output = decoder(batch.grid, batch.tokens)
        loss = cross_entropy(output.logits, output.targets, self.label_smoothing)
        goes_on = (output.targets != END) & (output.targets != PAD)
        end = output.logits.float().softmax(-1)[:, END]
        length = ((1 - end).clamp(min=1e-6).log() * goes_on).sum() / goes_on.sum()
        return {"loss": loss - self.bonus * length, "cross_entropy": loss, "length": length}

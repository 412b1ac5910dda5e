"""Scheduled sampling (Bengio et al. 2015): the model reads some of its own words."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from captioning.decoding.base import generating
from captioning.kernels.ops import at_least_single
from captioning.models.decoders.base import Decoder
from captioning.objectives.base import without_impossible
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD

if TYPE_CHECKING:
    from captioning.data.datamodule import Batch


class ScheduledSampling(CrossEntropy):
    """Cross entropy whose inputs are, more and more often, sampled from the model.

    At each word a coin is tossed: with probability epsilon_i the model reads the true previous
    word, else a word sampled from its own distribution at that place, given the words that it has
    read so far. The targets stay the true words. In the i-th step, epsilon_i is

        linear:           max(smallest, 1 - i / decay)
        inverse_sigmoid:  max(smallest, decay / (decay + exp(i / decay)))

    (Bengio et al. 2015, section 2.4). The sampled words are not differentiated, as in the paper.
    Words are sampled without dropout.

    Args:
        schedule: how epsilon decreases.
        decay: in steps. With ``linear``, epsilon would reach 0 after so many steps; with
            ``inverse_sigmoid`` it is one half after ``decay * ln(decay)`` steps.
        smallest: the least epsilon.
        cross_entropy: the arguments of :class:`~captioning.objectives.CrossEntropy`.
    """

    static = False
    steps: Tensor

    def __init__(
        self,
        schedule: Literal["linear", "inverse_sigmoid"] = "linear",
        decay: float = 12000.0,
        smallest: float = 0.75,
        **cross_entropy: float | str,
    ) -> None:
        super().__init__(**cross_entropy)  # type: ignore[arg-type]
        if decay < 1 or not 0 <= smallest <= 1:
            raise CaptioningError(
                f"objective.decay={decay} must be at least 1 and "
                f"objective.smallest={smallest} in [0, 1]."
            )
        self.schedule = schedule
        self.decay = decay
        self.smallest = smallest
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def true_share(self, step: int) -> float:
        """The probability epsilon of reading the true word in a step, which is counted from 0."""
        if self.schedule == "linear":
            share = 1 - step / self.decay
        else:
            # exp would overflow, and the quotient is 0 to double precision from there on.
            share = self.decay / (self.decay + math.exp(min(step / self.decay, 700)))
        return max(self.smallest, share)

    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        if not self.training:
            return super().forward(decoder, batch)
        share = self.true_share(int(self.steps))
        self.steps += 1
        read = batch.tokens if share == 1 else self.mixed(decoder, batch, share)
        output = decoder(batch.grid, read)
        # The decoder takes the words that it reads for the targets; these stay the true ones.
        true = batch.tokens[:, :, 1:].flatten().to(output.targets.device)[output.positions]
        parts = self.parts(replace(output, targets=true.where(output.targets != PAD, PAD)))
        return parts | {"true_share": torch.tensor(share, device=output.logits.device)}

    def mixed(
        self, decoder: Decoder, batch: "Batch", share: float
    ) -> Int[Tensor, "images captions length"]:
        """The tokens of the batch, of which some are replaced by sampled words.

        The start token, the last token of each caption, which is not read, and padding stay.
        """
        tokens = batch.tokens
        images, captions, length = tokens.shape
        read = tokens.to(batch.grid.device)
        is_read = torch.zeros_like(read, dtype=torch.bool)
        is_read[:, :, 1:-1] = (read[:, :, 1:-1] != PAD) & (read[:, :, 2:] != PAD)
        replaced = is_read & (torch.rand(read.shape, device=read.device) >= share)
        read = read.clone()
        with generating(decoder):
            memory = decoder.prepare(batch.grid)
            state = decoder.start(memory, captions)
            for word in range(length - 2):
                step = decoder.step(read[:, :, word], state, memory)
                state = step.state
                logits = without_impossible(at_least_single(step.logits))
                drawn = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).view(
                    images, captions
                )
                read[:, :, word + 1] = drawn.where(replaced[:, :, word + 1], read[:, :, word + 1])
        return read.to(tokens.device)

"""The objective of hard attention: cross entropy, REINFORCE, entropy (Xu et al. 2015, sec. 4.1)."""

from typing import Any

import torch
from torch import Tensor

from captioning.kernels.ops import log_sum_exp
from captioning.models.decoders.base import TeacherForced
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import PAD


class HardAttention(CrossEntropy):
    """Trains a decoder that samples a location s_t for each word (section 4.1 of the paper).

    The loss is the cross entropy of the words given the sampled locations, and two terms for the
    weights alpha from which the locations are drawn, which no derivative reaches otherwise:

        - reinforce * sum_captions (log p(y | s, a) - T b) sum_t log p(s_t | a)
        - entropy * sum_captions sum_t H(alpha_t)

    both divided by the number of words of the batch, like the cross entropy. A caption is rewarded
    by its log-probability, less what is expected of its T words: b is a moving average of the
    log-probability of a word, b <- decay b + (1 - decay) mean log p(y_t | s, a), from 0 on. With
    ``reinforce=1``, ``entropy=0`` and no label smoothing, the expected gradient is that of
    sum_s p(s | a) log p(y | s, a), the paper's lower bound of log p(y | a), whatever b is.

    The coefficients are those of the authors' code. There, however, both terms are summed over the
    captions of a batch, the cross entropy is averaged over them, and a reward is the mean over the
    caption's words; so with its 64 captions of 12 words, say, the code weighs the terms as
    ``reinforce=0.53`` and ``entropy=0.13`` do here, where the batch size makes no difference.

    Captions for which the decoder used the expectation instead of a sample have no REINFORCE term.

    Args:
        reinforce: weight of the REINFORCE term (lambda_r).
        entropy: weight of the entropy term (lambda_e).
        baseline_decay: share of the old value in the moving average b.
        base: the arguments of :class:`~captioning.objectives.cross_entropy.CrossEntropy`.
    """

    static = True

    baseline: Tensor

    def __init__(
        self,
        reinforce: float = 0.1,
        entropy: float = 0.002,
        baseline_decay: float = 0.9,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if reinforce < 0 or entropy < 0 or not 0 <= baseline_decay <= 1:
            raise CaptioningError(
                f"objective.reinforce={reinforce} and objective.entropy={entropy} must be at least "
                f"0, and objective.baseline_decay={baseline_decay} between 0 and 1."
            )
        self.reinforce = reinforce
        self.entropy = entropy
        self.baseline_decay = baseline_decay
        self.register_buffer("baseline", torch.zeros(()))

    def parts(self, output: TeacherForced) -> dict[str, Tensor]:
        weights, location = output.attention, output.location
        if weights is None or location is None:
            raise CaptioningError(
                "objective=hard_attention trains decoders that sample locations: use "
                "model=hard_attn_lstm, or objective=cross_entropy for this model."
            )
        parts = super().parts(output)
        real, captions = output.targets != PAD, output.positions // output.max_length
        words = real.sum().clamp(min=1)
        log_weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
        chosen = log_weights.gather(1, location.clamp_min(0)[:, None]).squeeze(1)  # log p(s_t | a)
        with torch.no_grad():
            log_probs = output.logits.gather(1, output.targets[:, None]).squeeze(1)
            log_probs = (log_probs - log_sum_exp(output.logits)).where(real, 0)  # log p(y_t | s, a)
            lengths = output.lengths.flatten()
            reward = log_probs.new_zeros(lengths.shape).index_add(0, captions, log_probs)
            advantage = (reward - lengths * self.baseline)[captions].where(
                real & (location >= 0), 0
            )
            if self.training:
                mean = (log_probs.sum() / words).to(self.baseline.dtype)
                mean = mean.where(real.any(), self.baseline)  # no words, no change
                self.baseline.lerp_(mean, 1 - self.baseline_decay)
        parts["reinforce"] = -(advantage * chosen).sum() / words
        parts["entropy"] = -((weights * log_weights).sum(-1) * real).sum() / words
        parts["loss"] = (
            parts["loss"] + self.reinforce * parts["reinforce"] - self.entropy * parts["entropy"]
        )
        return parts

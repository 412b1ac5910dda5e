"""Self-critical training (Rennie et al. 2017): REINFORCE with a caption metric as the reward."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioning.decoding import Greedy, Hypothesis, Sample
from captioning.decoding.base import evaluation_mode
from captioning.kernels.ops import at_least_single
from captioning.metrics.reward import CaptionReward
from captioning.models.decoders.base import Decoder, TeacherForced
from captioning.objectives.base import Objective, without_impossible
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD, SPECIAL_WORDS, START

if TYPE_CHECKING:
    from captioning.data.datamodule import Batch, CaptionDataModule


class SelfCritical(Objective):
    """Raises the probability of sampled captions whose reward is above a baseline.

        loss = - 1/N sum_k (r(w^k) - b_k) log p(w^k | image)

    over the N sampled captions w^k, whose gradient is an unbiased estimate of that of minus the
    expected reward (Rennie et al. 2017, eq. 5 to 7). Captions are sampled from the model's own
    distribution, ``<unk>`` included, without the rules of decoding. The reward is CIDEr-D plus a
    weighted BLEU-4, with document frequencies of the train split; words are compared as the data
    module cleans them. Start from a model that has been trained with cross entropy:
    ``init_from=PATH``.

    With ``kl_weight``, what is maximised is the expected reward minus that weight times the
    Kullback-Leibler divergence of the model from a teacher, usually the model at the start: the
    reward of a sample is lowered by kl_weight * (log p(w) - log p_teacher(w)), as in Ziegler et al.
    2019 (arXiv 1909.08593, eq. 2).

    Args:
        samples: captions sampled for each image (K).
        temperature: of the distribution that is sampled and trained; 1 is the model's own.
        baseline: ``leave_one_out``, the mean reward of the image's other samples (Luo 2020), or
            ``greedy``, the reward of the greedily decoded caption (Rennie et al. 2017).
        bleu_weight: weight of BLEU-4 in the reward.
        end_token: whether the end token is a part of captions, references and document
            frequencies; see :mod:`captioning.metrics.reward`.
        cross_entropy_weight: weight of the cross entropy of the references, which is added.
        label_smoothing: of that cross entropy.
        max_length: the number of words after which a sampled caption is cut off.
        kl_weight: weight of the divergence from the teacher.
        teachers: the checkpoint of the teacher, or of several as an ensemble; they are loaded, by
            ``train.py``, only if ``kl_weight`` is not 0.
        dropout: whether dropout is on when the probabilities of the sampled captions are computed.
            They are always sampled without dropout.
    """

    no_teacher: ClassVar[str] = (
        "objective.kl_weight has no model to stay near to: give objective.teachers=PATH, or "
        "init_from=PATH."
    )

    def __init__(
        self,
        samples: int = 5,
        temperature: float = 1.0,
        baseline: Literal["leave_one_out", "greedy"] = "leave_one_out",
        bleu_weight: float = 0.0,
        end_token: bool = True,
        cross_entropy_weight: float = 0.0,
        label_smoothing: float = 0.1,
        max_length: int = 20,
        dropout: bool = False,
        kl_weight: float = 0.0,
        teachers: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        if samples < 1 or (baseline == "leave_one_out" and samples < 2):
            raise CaptioningError(
                f"objective.samples={samples}: choose 1 or more, and 2 or more with "
                "objective.baseline=leave_one_out."
            )
        weights = {
            "bleu_weight": bleu_weight,
            "cross_entropy_weight": cross_entropy_weight,
            "kl_weight": kl_weight,
        }
        for name, weight in weights.items():
            if weight < 0:
                raise CaptioningError(f"objective.{name}={weight} must be at least 0.")
        # The model's whole distribution: the rules of decoding would change it.
        rules: dict[str, Any] = {
            "max_length": max_length,
            "min_length": 0,
            "allow_unknown": True,
            "allow_repeats": True,
            "no_repeat_ngram": 0,
        }
        self.sampling = Sample(captions=samples, temperature=temperature, seed=None, **rules)
        self.greedy = Greedy(**rules) if baseline == "greedy" else None
        self.bleu_weight = bleu_weight
        self.end_token = end_token
        self.cross_entropy_weight = cross_entropy_weight
        self.cross_entropy = CrossEntropy(label_smoothing) if cross_entropy_weight else None
        self.dropout = dropout
        self.kl_weight = kl_weight
        if kl_weight:
            self.teachers = [teachers] if isinstance(teachers, str) else teachers or []
        self.reward: CaptionReward | None = None
        self.words: list[str] = []

    @property
    def reward_signature(self) -> str:
        end = "STANDARD" if self.end_token else "NO<EOS>"
        metric = "Cider-D[n4,s6.0]" + (
            f"+{self.bleu_weight:g}*BLEU[n4]" if self.bleu_weight else ""
        )
        baseline = "greedy" if self.greedy else "average"
        return f"{end}_wInit+{metric}+{baseline}[nspi{self.sampling.captions}]"

    def setup(self, data: "CaptionDataModule") -> None:
        self.words = [*SPECIAL_WORDS, *data.vocabulary.words]
        references = {
            image.id: [text.split() for text in data.descriptions[image.id]]
            for image in data.images("train")
        }
        self.reward = CaptionReward(references, references, self.bleu_weight, self.end_token)

    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        if self.reward is None:
            raise CaptioningError(
                "objective=self_critical has no references: call objective.setup(data) first, as "
                "Captioner does before training."
            )
        grid = batch.grid
        found = self.sampling(decoder, grid)
        tokens = self.teacher_forced_tokens(found)
        with nullcontext() if self.dropout else evaluation_mode(decoder):
            log_probs = self.log_probs(decoder, grid, tokens)
        rewards = torch.from_numpy(self.rewards(batch.ids, found)).to(log_probs)
        parts = {"reward": rewards.mean()}
        if self.kl_weight:
            teacher = self.teacher(grid.device)
            with evaluation_mode(teacher), torch.no_grad():
                divergence = log_probs.detach() - self.log_probs(teacher, grid, tokens)
            parts["kl"] = divergence.mean()
            rewards = rewards - self.kl_weight * divergence
        if self.greedy is None:
            baseline = (rewards.sum(1, keepdim=True) - rewards) / (self.sampling.captions - 1)
        else:
            greedy = self.rewards(batch.ids, self.greedy(decoder, grid))
            baseline = torch.from_numpy(greedy).to(log_probs)
        loss = -((rewards - baseline) * log_probs).mean()
        parts |= {"policy_gradient": loss, "loss": loss}
        if self.cross_entropy is not None:
            parts["cross_entropy"] = self.cross_entropy(decoder, batch)["cross_entropy"]
            parts["loss"] = loss + self.cross_entropy_weight * parts["cross_entropy"]
        return parts

    def rewards(
        self, images: Sequence[str], found: Sequence[Sequence[Hypothesis]]
    ) -> Float[np.ndarray, "images captions"]:
        """The reward of each hypothesis of each image."""
        assert self.reward is not None
        captions = [hypothesis.tokens for of_image in found for hypothesis in of_image]
        rewards = self.reward(
            [image for image, of_image in zip(images, found, strict=True) for _ in of_image],
            [[self.words[token] for token in tokens] for tokens in captions],
            [self.has_ended(tokens) for tokens in captions],
        )
        return rewards.reshape(len(found), -1)

    def has_ended(self, tokens: Sequence[int]) -> bool:
        """Whether a sampled caption ended by itself, and was not cut off at ``max_length``."""
        return len(tokens) < self.sampling.max_length

    def teacher_forced_tokens(
        self, found: Sequence[Sequence[Hypothesis]]
    ) -> Int[Tensor, "images captions length"]:
        """The tokens of sampled captions as a batch has them: ``<start>`` ... ``<end>``, padded."""
        length = max(len(each.tokens) for of_image in found for each in of_image) + 2
        rows = [
            [[START, *each.tokens, *([END] if self.has_ended(each.tokens) else [])] for each in of]
            for of in found
        ]
        padded = [[row + [PAD] * (length - len(row)) for row in of_image] for of_image in rows]
        return torch.tensor(padded)

    def log_probs(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> Float[Tensor, "images captions"]:
        """The log-probability of each caption under the distribution that is sampled."""
        output: TeacherForced = decoder(grid, tokens)
        logits = at_least_single(output.logits) / self.sampling.temperature
        possible = without_impossible(logits)
        # The target of rows of padding is <pad>: its log-probability, which is not used, must not
        # be -inf, because -inf * 0 is NaN.
        possible = possible.where(output.targets[:, None] != PAD, 0)
        log_probs: Tensor = replace(output, logits=possible).token_log_probs().sum(-1)
        return log_probs

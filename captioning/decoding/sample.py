"""Sampling from the model's distribution, and greedy decoding as its limit."""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioning.decoding.base import Decoding, Hypothesis, images_to_keep, select
from captioning.models.decoders.base import Decoder
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD, START


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Decoding):
    """Chooses one word at a time; images whose captions have all ended leave the batch."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The number of captions for each image."""

    @abstractmethod
    def choose(
        self,
        log_probs: Float[Tensor, "images captions words"],
        generator: torch.Generator | None,
    ) -> Int[Tensor, "images captions"]:
        """Choose the next word of each caption.

        Args:
            log_probs: of each word.
            generator: of random numbers; None is PyTorch's default generator.
        """

    def generator(self, grid: Float[Tensor, "images locations channels"]) -> torch.Generator | None:
        """The generator of the random numbers for a batch of images."""
        del grid
        return None

    def generate(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool,
    ) -> list[list[Hypothesis]]:
        memory = decoder.prepare(grid)
        state = decoder.start(memory, self.width)
        images = torch.arange(len(grid), device=grid.device)  # those still being written
        size = (len(grid), self.width, self.max_length)
        written = torch.full(size, PAD, device=grid.device)
        total = torch.zeros(size[:2], device=grid.device)
        maps: Tensor | None = None
        ended = torch.zeros(size[:2], dtype=torch.bool, device=grid.device)
        last = torch.full(size[:2], START, device=grid.device)
        generator = self.generator(grid)
        for word in range(self.max_length):
            step = decoder.step(last, state, memory)
            state = step.state
            log_probs = self.log_probs(step.logits, written[images, :, :word], decoder)
            chosen = self.choose(log_probs, generator)
            gain = log_probs.gather(-1, chosen[..., None]).squeeze(-1)
            total[images] += gain.where(~ended, 0)
            ended |= chosen == END
            last = chosen.where(~ended, PAD)
            written[images, :, word] = last
            if attention and step.attention is not None:
                if maps is None:
                    maps = step.attention.new_zeros(*size, step.attention.shape[-1])
                maps[images, :, word] = step.attention
            live = ~ended.all(1)
            if not live.any():
                break
            stay = images_to_keep(live)
            if not stay.all():
                images, last, ended = images[stay], last[stay], ended[stay]
                state, memory = select(state, stay), select(memory, stay)
        lengths = (written != PAD).sum(-1).tolist()
        words, totals = written.tolist(), total.tolist()
        hypotheses = [
            [
                Hypothesis(
                    words[i][k][:length],
                    totals[i][k],
                    totals[i][k],
                    None if maps is None else maps[i, k, :length].clone(),
                )
                for k, length in enumerate(of_image)
            ]
            for i, of_image in enumerate(lengths)
        ]
        return [sorted(found, key=lambda h: -h.score) for found in hypotheses]


@dataclass(frozen=True, kw_only=True)
class Greedy(Autoregressive):
    """Chooses the most probable word at every step."""

    @property
    def width(self) -> int:
        """The number of captions is 1, because further ones would be equal."""
        return 1

    def choose(
        self,
        log_probs: Float[Tensor, "images captions words"],
        generator: torch.Generator | None,
    ) -> Int[Tensor, "images captions"]:
        del generator
        return log_probs.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Sample(Autoregressive):
    """Draws each word from the model's distribution.

    Attributes:
        captions: number of captions drawn for each image.
        temperature: values below 1 sharpen the distribution, values above 1 flatten it.
        top_k: draw from the ``top_k`` most probable words only; 0 draws from all words.
        top_p: draw from the smallest set of most probable words whose total probability reaches
            this value (nucleus sampling, Holtzman et al. 2020); 1 draws from all words.
        seed: seed of the random numbers. The same batch of images gets the same captions again, and
            another batch gets other random numbers. None draws from PyTorch's default generator,
            anew at each call.
    """

    captions: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.captions < 1:
            raise CaptioningError(
                f"decoding: temperature={self.temperature} must be above 0, top_k={self.top_k} at "
                f"least 0, top_p={self.top_p} in (0, 1] and captions={self.captions} at least 1"
            )

    @property
    def width(self) -> int:
        """The number of captions for each image, ``captions``."""
        return self.captions

    def generator(self, grid: Float[Tensor, "images locations channels"]) -> torch.Generator | None:
        if self.seed is None:
            return None
        # Seeded by the images too, since all batches would get the same random numbers otherwise.
        content = grid[:, 0].float().cpu().numpy().tobytes()
        digest = hashlib.sha256(str(self.seed).encode() + content).digest()
        return torch.Generator(grid.device).manual_seed(int.from_bytes(digest[:7]))

    def choose(
        self,
        log_probs: Float[Tensor, "images captions words"],
        generator: torch.Generator | None,
    ) -> Int[Tensor, "images captions"]:
        scaled = log_probs / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k).values[..., -1:]
            scaled = scaled.where(scaled >= least, -torch.inf)
        if self.top_p < 1:
            ordered, order = scaled.softmax(-1).sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # probability of the more probable words
            beyond = torch.zeros_like(scaled, dtype=torch.bool)
            beyond.scatter_(-1, order, before >= self.top_p)
            scaled = scaled.masked_fill(beyond, -torch.inf)
        probabilities = scaled.softmax(-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(
            probabilities.shape[:-1]
        )

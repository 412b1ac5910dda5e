"""An epoch of Flickr8k's size on a GPU, the grids resident in its memory."""

import torch

from benchmarks.measure import Figure, matrix_rate, paired
from benchmarks.textbook import Textbook
from benchmarks.training import (
    CAPTIONS,
    CHANNELS,
    IMAGES,
    LOCATIONS,
    Step,
    TextbookStep,
    batch_of,
    decoder_of,
    multiply_adds,
)

EPOCH = 6000  # images of Flickr8k's training split
STEPS = 25  # of the reference, which stand for its epoch


def run(rounds: int) -> list[Figure]:
    """Nothing where there is no GPU."""
    if not torch.cuda.is_available():
        print("gpu: there is no CUDA device here; nothing is measured.")
        return []
    return [epoch(torch.device("cuda"), rounds)]


def epoch(
    device: torch.device, rounds: int, images: int = EPOCH, locations: int = LOCATIONS
) -> Figure:
    """Seconds for all captions of so many images, in bfloat16, against the textbook's."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batches = [batch_of(generator, locations=locations)[1] for _ in range(images // IMAGES)]
    held = torch.randn(images, locations, CHANNELS, dtype=torch.float16, device=device).relu_()
    step = Step(decoder_of().to(device), "bf16")
    textbook = TextbookStep(Textbook(decoder_of()).to(device))
    steps = min(STEPS, len(batches))

    def grids(number: int) -> torch.Tensor:
        which = torch.arange(number * IMAGES, (number + 1) * IMAGES)
        return held.index_select(0, which.to(device, non_blocking=True))

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def ours() -> None:
        for number, tokens in enumerate(batches):
            step(grids(number), tokens)
        finish()

    def theirs() -> None:
        for number, tokens in enumerate(batches[:steps]):
            textbook(grids(number).float(), tokens.to(device))
        finish()

    theirs()
    mine, other, ratio = paired(ours, theirs, rounds=rounds)
    share = len(batches) / steps
    tokens = sum(int((of_batch[..., 1:] != 0).sum()) for of_batch in batches)
    needed = 3 * 2 * multiply_adds(tokens, images=images, locations=locations)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return Figure(
        f"an epoch of {images * CAPTIONS:,} captions", mine, "s", share * other, share * ratio,
        needed / matrix_rate(torch.bfloat16, device.type), f"on {name}, {len(batches)} steps",
    )  # fmt: skip

"""Running an encoder over image files, which threads read ahead while the network computes."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from captioning.data.images import decode_rgb, read_file
from captioning.data.views import ORIGINAL, View
from captioning.models.encoders.base import Encoder, PicturePreprocessing
from captioning.support.errors import CaptioningError

Item = TypeVar("Item")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Extracted(NamedTuple):
    """The grids of one batch of images, and the errors of those that could not be read.

    Attributes:
        digests: SHA-256 of each image that was encoded.
        grids: Their grids, in the order of ``digests``.
        errors: The error of each image that could not be read, by its digest.
    """

    digests: list[str]
    grids: Float16[np.ndarray, "batch locations channels"]
    errors: dict[str, CaptioningError]


def choose_device(device: str) -> torch.device:
    """Return the device of that name; ``auto`` is a GPU where there is one.

    Raises:
        CaptioningError: torch has no such device on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        if reason.startswith("Expected one of"):  # and then all device types that torch knows
            reason = "choose auto, cpu, cuda or mps."
        raise CaptioningError(f"device={device} cannot be used here: {reason}") from error
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` is bf16 where the hardware computes in it.

    Raises:
        CaptioningError: ``precision`` is not one of the three.
    """
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise CaptioningError(f"precision={precision} is unknown: choose auto, fp32 or bf16.")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # Older versions of torch do not report this; fp32 is chosen for them.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    else:
        native = False
    return "bf16" if native else "fp32"


def extract_grids(
    encoder: Encoder,
    files: Mapping[str, Path],
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    workers: int,
    view: View = ORIGINAL,
) -> Generator[Extracted, None, None]:
    """Encode image files, in the order of ``files``.

    Args:
        encoder: The network; it is on ``device`` until the last batch.
        files: From the SHA-256 of an image's content to its file.
        batch_size: Images encoded at once.
        device: Where to compute.
        precision: ``fp32`` or ``bf16``.
        workers: Threads that read and resize images.
        view: The view of each image that is encoded.

    Yields:
        The grids and errors of one batch.

    Raises:
        CaptioningError: a grid is beyond the range of half precision.
    """

    def load(digest: str) -> Float[Tensor, "3 height width"]:
        return _load(files[digest], digest, encoder.preprocessing, view)

    batches = load_in_batches(load, list(files), batch_size=batch_size, workers=workers)
    with closing(batches), _on_device(encoder, device):
        for images, errors in batches:
            if images:
                grids = encode(encoder, list(images.values()), device, precision).cpu().numpy()
            else:
                grids = np.empty((0, encoder.locations, encoder.channels), dtype=np.float16)
            yield Extracted(list(images), np.ascontiguousarray(grids), errors)


def _load(path: Path, digest: str, preprocessing: PicturePreprocessing, view: View) -> Tensor:
    data = read_file(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CaptioningError(
            f"{path} was changed without its time of change: `touch` it and run again."
        )
    return view.pixels(decode_rgb(data, path), preprocessing)


def load_in_batches(
    load: Callable[[Item], Tensor], items: Sequence[Item], *, batch_size: int, workers: int
) -> Generator[tuple[dict[Item, Tensor], dict[Item, CaptioningError]], None, None]:
    """Load images in the order of ``items``, up to two batches ahead of the consumer.

    Args:
        load: Returns the tensor of an image; it is called in threads.
        items: The images, such as their files, each once.
        batch_size: Images in a batch.
        workers: Threads.

    Yields:
        The tensors of a batch, and the errors of the images that could not be loaded.
    """
    images: dict[Item, Tensor] = {}
    errors: dict[Item, CaptioningError] = {}
    with closing(_read_ahead(load, items, workers, ahead=2 * batch_size)) as loading:
        for item, image in loading:
            try:
                images[item] = image.result()
            except CaptioningError as error:
                errors[item] = error
            if len(images) + len(errors) == batch_size:
                yield images, errors
                images, errors = {}, {}
    if images or errors:
        yield images, errors


def _read_ahead(
    load: Callable[[Item], Tensor], items: Sequence[Item], workers: int, ahead: int
) -> Generator[tuple[Item, "Future[Tensor]"], None, None]:
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[Item, Future[Tensor]]] = deque()
        try:
            for item in items:
                pending.append((item, pool.submit(load, item)))
                if len(pending) > ahead:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _on_device(encoder: Encoder, device: torch.device) -> Iterator[None]:
    home = next(encoder.parameters(), torch.empty(0)).device  # an encoder may have no parameters
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to(home)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context manager for computing in ``fp32`` or ``bf16``."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def encode(
    encoder: Encoder, images: Sequence[Tensor], device: torch.device, precision: str
) -> Float16[Tensor, "batch locations channels"]:
    """Return the grids of preprocessed images, on the device, in the store's half precision.

    Raises:
        CaptioningError: a grid is beyond the range of half precision.
    """
    # The fast convolutions of CPUs and of tensor cores expect the memory format channels last.
    batch = torch.stack(list(images)).to(device, memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(device, precision):
        grids: Tensor = encoder(batch).half()
    if not grids.isfinite().all():
        raise CaptioningError(
            f"{encoder.name} gives numbers that half precision cannot hold: check encoder.weights."
        )
    return grids

"""Computes the grids that a feature store does not have yet."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from captioning.data.features.digests import try_image_digests
from captioning.data.features.extraction import choose_device, choose_precision, extract_grids
from captioning.data.features.meta import identity_of, store_folder, write_meta
from captioning.data.features.rows import (
    append_rows,
    check_space,
    read_index,
    repair,
    whole_rows,
)
from captioning.data.features.store import FeatureStore, same_picture
from captioning.data.views import ORIGINAL, View
from captioning.models.encoders.base import Encoder
from captioning.support.errors import CaptioningError
from captioning.support.locks import file_lock
from captioning.support.progress import track_progress

log = logging.getLogger(__name__)


def build_store(
    directory: Path,
    encoder: Encoder,
    images: Sequence[tuple[str, Path]],
    *,
    batch_size: int = 16,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    view: View = ORIGINAL,
    skip_bad: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Open the encoder's store of a view, after computing the grids that it does not have yet.

    Grids that are damaged in the store are computed anew from their images, with a warning.

    Several processes may do so at once: one of them computes, the others wait for it.

    The precision is written into ``meta.json``, but it is not part of the store's key: the cosine
    between a grid in bfloat16 and the same grid in single precision is above 0.999, and a store
    should stay usable on a machine that would compute in the other precision.

    Args:
        directory: Where all stores are; this one's folder is made below.
        encoder: The network; it is on ``device`` for as long as it computes.
        images: Id and file of each image.
        batch_size: Images encoded at once.
        device: ``auto`` (a GPU where there is one), or any name that torch knows.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the hardware computes in it.
        workers: Threads that read and resize images.
        view: The view of each image that is encoded.
        skip_bad: Leave out missing and broken images, and name them in the result's ``notes``.
        progress: Whether to show a progress bar.

    Raises:
        CaptioningError: an image is missing or broken and ``skip_bad`` is off; no image is left;
            an id comes twice; the store is damaged or cannot be written.
    """
    paths = dict(images)
    if len(paths) < len(images):
        raise CaptioningError("The feature store was given the same image id twice.")
    outcomes = try_image_digests(
        list(paths.values()), directory / "digests.json", progress=progress
    )
    digests: dict[str, str] = {}
    errors: dict[str, CaptioningError] = {}  # by image
    for image, outcome in zip(paths, outcomes, strict=True):
        if isinstance(outcome, str):
            digests[image] = outcome
        else:
            errors[image] = outcome
    _raise_unless(skip_bad, errors)

    folder = store_folder(directory, encoder, view)
    files = {digest: paths[image] for image, digest in digests.items()}
    # The first look takes no lock: a complete store may be in a folder that we may only read.
    if not whole_rows(folder, read_index(folder), files) >= files.keys():
        with file_lock(folder / "lock", f"it is computing the grids in {folder}"):
            missing = _missing(folder, files)
            broken: dict[str, CaptioningError] = {}
            if missing:
                broken = _compute(
                    folder,
                    encoder,
                    missing,
                    batch_size=batch_size,
                    device=device,
                    precision=precision,
                    workers=workers,
                    view=view,
                    skip_bad=skip_bad,
                    progress=progress,
                )
        for image, digest in list(digests.items()):
            if digest in broken:
                errors[image] = broken[digest]
                del digests[image]

    if not digests:
        reason = f": {next(iter(errors.values()))}" if errors else "."
        raise CaptioningError(f"Not one of {len(images)} images can be read{reason}")
    notes = _notes(digests, errors)
    for note in notes:
        log.warning("%s", note)
    store = FeatureStore(folder, digests, notes)
    if store.unchecked:
        log.info(
            "%d grids in %s were stored by an earlier version, without checksums: damage to them "
            "is not noticed; delete that folder to compute them anew, with checksums",
            *(store.unchecked, folder),
        )
    return store


def _missing(folder: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    """The files whose grids are not in the store, or damaged, by digest; needs the lock."""
    index = repair(folder)
    whole = whole_rows(folder, index, files)
    missing = {digest: path for digest, path in files.items() if digest not in whole}
    if damaged := [path for digest, path in missing.items() if digest in index]:
        log.warning(
            "%s: %d stored grids are damaged, and are computed anew: that of %s%s",
            *(folder / "grids.bin", len(damaged), damaged[0]),
            " and others" if len(damaged) > 1 else "",
        )
    return missing


def _compute(
    folder: Path,
    encoder: Encoder,
    files: Mapping[str, Path],
    *,
    batch_size: int,
    device: str,
    precision: str,
    workers: int,
    view: View,
    skip_bad: bool,
    progress: bool,
) -> dict[str, CaptioningError]:
    """Append the grids of some files, by digest; needs the lock.

    Returns:
        The errors of broken images, by digest.

    Raises:
        CaptioningError: as for :func:`build_store`.
    """
    chosen = choose_device(device)
    arithmetic = choose_precision(precision, chosen)
    write_meta(folder, identity_of(encoder, view), arithmetic)
    what = encoder.name if view.is_original else f"{encoder.name} of the view {view.name}"
    log.info(
        "Computing %d grids with %s on %s (%s) into %s",
        *(len(files), what, chosen, arithmetic, folder),
    )
    batches = extract_grids(
        encoder,
        files,
        batch_size=batch_size,
        device=chosen,
        precision=arithmetic,
        workers=workers,
        view=view,
    )
    title = f"Computing grids with {what}"
    broken: dict[str, CaptioningError] = {}
    with closing(batches), track_progress(title, len(files), visible=progress) as advance:
        left, checked = len(files), False
        for batch in batches:
            size = append_rows(folder, batch.digests, batch.grids)
            _raise_unless(skip_bad, batch.errors)
            broken |= batch.errors
            done = len(batch.digests) + len(batch.errors)
            left -= done
            if size and not checked:
                check_space(folder, left * size // len(batch.digests))
                checked = True
            advance(done)
    return broken


def _notes(digests: Mapping[str, str], errors: Mapping[str, CaptioningError]) -> list[str]:
    """What the user should know: images that are left out, and images of the same content."""
    notes = [f"{image} is left out: {error}" for image, error in errors.items()]
    first_with: dict[str, str] = {}
    for image, digest in digests.items():
        first = first_with.setdefault(digest, image)
        if first != image:
            notes.append(same_picture(image, first))
    return notes


def _raise_unless(skip_bad: bool, errors: Mapping[str, CaptioningError]) -> None:
    if errors and not skip_bad:
        first = next(iter(errors.values()))
        more = f" (and {len(errors) - 1} more images)" if len(errors) > 1 else ""
        raise CaptioningError(f"{first}{more} With skip_bad=true such images are left out.")

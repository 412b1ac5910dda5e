"""Fetching models from the Hugging Face hub, and giving them to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioning.pretrained.places import CONFIG, VOCABULARY, WEIGHTS
from captioning.support.errors import CaptioningError


def download(name: str, revision: str | None = None, key: str = "ckpt") -> Path:
    """The folder of a model on the hub, in the hub's cache; without a network, an earlier copy.

    Only the three files of a model are fetched: never Python files, nor pickles.

    Args:
        name: ``OWNER/NAME``.
        revision: a branch, tag or commit; None: the newest.
        key: the setting that names the model, for messages.

    Raises:
        CaptioningError: the hub has no such model, or cannot be reached.
    """
    hub = _import_hub()
    with _explaining(f"{key}=hf://{name} cannot be fetched"):
        found = hub.snapshot_download(
            name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, VOCABULARY]
        )
    folder = Path(found)
    for part in (CONFIG, WEIGHTS, VOCABULARY):
        if not (folder / part).is_file():
            raise CaptioningError(
                f"{key}=hf://{name}: it has no {part}, so that it is no model of captioning."
            )
    return folder


def push(folder: Path, name: str, *, private: bool | None = None) -> str:
    """Give the folder of a model to the hub, as the user who has logged in there.

    Args:
        folder: what was exported.
        name: ``OWNER/NAME``; the repository is made if there is none.
        private: whether a new repository is private; None: as the owner's settings say.

    Returns:
        The address of the commit.

    Raises:
        CaptioningError: the hub refuses it, or cannot be reached.
    """
    hub = _import_hub()
    with _explaining(f"{folder} cannot be given to {name}"):
        api = hub.HfApi(library_name="captioning")
        api.create_repo(repo_id=name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message="Upload a model of captioning"
        )
    return str(done.commit_url)


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CaptioningError(
            "Models on the Hugging Face hub need its client: pip install 'captioning[hub]'."
        ) from error
    return huggingface_hub


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Turn any error of the hub's client into one sentence."""
    try:
        yield
    except Exception as error:  # of the client, its network library and the disk
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise CaptioningError(
            f"{what} ({reason}): check the name and the network; `hf auth login` logs in."
        ) from error

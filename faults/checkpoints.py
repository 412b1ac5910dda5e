"""Damaged and hostile checkpoints, through ``Captioner.load_from_checkpoint`` and when resuming.

Each must load as the captioner that was saved, or be refused in one sentence. None may run code,
and none may load with other weights than were saved.
"""

import io
import os
import pickle
import random
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.trainer import quieten
from captioning.training.fit import fit
from faults.attempt import attempt
from faults.outcome import Outcome, Try

DEFAULT_TRIES: Final = 300

_SECONDS: Final = 60.0
_MODULE: Final = "module_of_a_stranger"
_WORDS: Final = [f"word{number}" for number in range(20)]

Content = dict[str, Any]


def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
    """Make so many tries.

    Args:
        tries: their number.
        folder: an empty folder to work in.
        seed: the cases are drawn from it.
    """
    rng = random.Random(seed)
    quieten()
    kinds = {**_BYTES, **_CONTENTS, **_HOSTILE, **_RESUMED}
    with warnings.catch_warnings(), _stranger(folder) as has_run:
        warnings.simplefilter("ignore")
        saved = folder / "saved.ckpt"
        _train(saved)
        whole = saved.read_bytes()
        before = Captioner.load_from_checkpoint(saved)
        for number in range(tries):
            kind = [*kinds][number % len(kinds)]
            path = folder / "tried.ckpt"
            case = kinds[kind](rng, whole, path)
            load = _resume if kind in _RESUMED else Captioner.load_from_checkpoint
            outcome, detail, loaded = attempt(lambda load=load, path=path: load(path), _SECONDS)  # type: ignore[misc]
            if has_run():
                outcome, detail = "silent", "code of the checkpoint was run"
            elif isinstance(loaded, Captioner) and kind not in _RESUMED:
                outcome, detail = _judge(loaded, before, must_be_refused=kind in _REFUSED)
            yield Try(kind, case, outcome, detail)
            path.unlink()


@contextmanager
def _stranger(folder: Path) -> Iterator[Callable[[], bool]]:
    """A module that can be imported; yields a function that tells whether it was."""
    mark = folder / "code_was_run"
    (folder / "modules").mkdir()
    source = f"open({str(mark)!r}, 'w').close()\n"
    (folder / "modules" / f"{_MODULE}.py").write_text(source)
    sys.path.insert(0, str(folder / "modules"))

    def has_run() -> bool:
        ran = mark.exists() or _MODULE in sys.modules
        mark.unlink(missing_ok=True)
        sys.modules.pop(_MODULE, None)
        return ran

    try:
        yield has_run
    finally:
        sys.path.remove(str(folder / "modules"))


class _Data(pl.LightningDataModule):
    """Two batches of random grids and captions."""

    def train_dataloader(self) -> DataLoader[Batch]:
        generator = torch.Generator().manual_seed(0)
        batches = [
            Batch(
                ids=["a", "b"],
                images=torch.rand(2, 4, 512, generator=generator),
                tokens=torch.randint(4, 20, (2, 1, 6), generator=generator),
            )
            for _ in range(2)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def _captioner() -> Captioner:
    encoder = "captioning.models.encoders.vgg16.VGG16"
    decoder = "captioning.models.decoders.attn_lstm.AttentionLSTM"
    return Captioner(
        _WORDS,
        encoder={"_target_": encoder, "weights": "random", "image_size": 32, "trainable": False},
        model={"_target_": decoder, "hidden_dim": 8, "embed_dim": 8, "attention_dim": 8},
        objective="cross_entropy",
        backend="torch",
    )


def _trainer(epochs: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def _train(path: Path) -> None:
    torch.manual_seed(0)
    trainer = _trainer(1)
    trainer.fit(_captioner(), datamodule=_Data())
    trainer.save_checkpoint(path)


def _resume(path: Path) -> None:
    trainer = _trainer(2)
    fit(trainer, _captioner(), _Data(), str(path))
    assert trainer.global_step >= 2


def _judge(loaded: Captioner, before: Captioner, *, must_be_refused: bool) -> tuple[Outcome, str]:
    if must_be_refused:
        return "silent", "it was loaded"
    for ours, theirs in ((loaded, before), (loaded.encoder, before.encoder)):
        found, expected = ours.state_dict(), theirs.state_dict()
        if found.keys() != expected.keys() or not all(
            torch.equal(found[key], expected[key]) for key in expected
        ):
            return "silent", "it was loaded with other weights"
    if loaded.vocabulary != before.vocabulary:
        return "silent", "it was loaded with another vocabulary"
    loaded(torch.zeros(1, 4, 512))
    return "right", ""


# Damaged files. Each function writes a file and returns what it has done.


def _flipped(rng: random.Random, whole: bytes, path: Path) -> str:
    data, places = bytearray(whole), []
    for _ in range(rng.choice((1, 1, 1, 8))):
        # The directory of the archive, which is at its end, has most of what can go wrong.
        start = rng.choice((0, max(0, len(data) - 9000)))
        places.append(rng.randrange(start, len(data)))
        data[places[-1]] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"bytes {places}"


def _cut(rng: random.Random, whole: bytes, path: Path) -> str:
    length = rng.choice(
        (rng.randrange(200), rng.randrange(len(whole)), len(whole) - rng.randrange(1, 99))
    )
    path.write_bytes(whole[:length])
    return f"{length} of {len(whole)} bytes"


def _hole(rng: random.Random, whole: bytes, path: Path) -> str:
    start, length = rng.randrange(len(whole)), rng.choice((512, 4096, 65536))
    path.write_bytes((whole[:start] + bytes(length) + whole[start + length :])[: len(whole)])
    return f"{length} zeros from {start}"


def _appended(rng: random.Random, whole: bytes, path: Path) -> str:
    more = rng.randbytes(rng.choice((1, 30, 3000, 99_999)))
    first = rng.random() < 0.5
    path.write_bytes(more + whole if first else whole + more)
    return f"{len(more)} bytes {'before' if first else 'after'} it"


def _another_file(rng: random.Random, whole: bytes, path: Path) -> str:
    def archive() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data.pkl", rng.randbytes(99))
        return buffer.getvalue()

    def compressed() -> bytes:
        buffer = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(whole)) as file,
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other,
        ):
            for name in file.namelist():
                other.writestr(name, file.read(name))
        return buffer.getvalue()

    def of_torch(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    choices: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "text": lambda: b"<html>404</html>",
        "noise": lambda: rng.randbytes(3000),
        "archive": archive,
        "compressed": compressed,
        "tensor": lambda: of_torch(torch.zeros(3)),
        "list": lambda: of_torch([1, "a"]),
        "weights alone": lambda: of_torch({"weight": torch.zeros(3)}),
        "old torch": lambda: of_torch({"a": 1}, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps({"a": 1}),
    }
    name = rng.choice(sorted(choices))
    path.write_bytes(choices[name]())
    return name


# Strange contents


def _content(whole: bytes) -> Content:
    content: Content = torch.load(io.BytesIO(whole), weights_only=True)
    return content


def _changing(change: Callable[[random.Random, Content], str]) -> Callable[..., str]:
    def write(rng: random.Random, whole: bytes, path: Path) -> str:
        content = _content(whole)
        case = change(rng, content)
        torch.save(content, path)
        return case

    return write


_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    0,
    3,
    10**9,
    10**100,
    10**5000,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a.b",
    "\x1b[2J\n",
    "\ud800",
    "x" * 10**5,
    b"x",
    [],
    [None],
    ["a", "a"],
    [[]],
    {},
    {"a": {}},
    {"_target_": "x.Y"},
    {1: 2},
    (1, 2),
    torch.zeros(2),
    torch.device("cpu"),
    torch.float16,
)


def _places(value: Any, below: str = "") -> list[tuple[Any, Any, str]]:
    """Each entry of nested dictionaries, as its dictionary, its key and a name."""
    found = []
    for key, inner in value.items():
        if len(below.split("/")) < 4:
            found.append((value, key, f"{below}{key}"))
        if isinstance(inner, dict) and "state_dict" not in str(key):
            found += _places(inner, f"{below}{key}/")
    return found


def _removed(rng: random.Random, content: Content) -> str:
    place, key, name = rng.choice(_places(_ours(content)))
    (content if place.keys() == _ours(content).keys() else place).pop(key)
    return f"without {name}"


def _ours(content: Content) -> Content:
    """The entries of which a captioner is made."""
    return {
        key: content[key]
        for key in ("format", "run", "noise_seed", "encoder", "hyper_parameters", "state_dict")
    }


def _replaced(rng: random.Random, content: Content) -> str:
    place, key, name = rng.choice(_places(_ours(content)))
    odd = deepcopy(rng.choice(_ODD))
    (content if place.keys() == _ours(content).keys() else place)[key] = odd
    return f"{name}={type(odd).__name__}"


def _added(rng: random.Random, content: Content) -> str:
    place = rng.choice((content, content["hyper_parameters"], content["encoder"], content["run"]))
    place[rng.choice(("more", "_target_", "hidden_dim", ""))] = odd = deepcopy(rng.choice(_ODD))
    return f"{type(odd).__name__} added"


def _settings(rng: random.Random, content: Content) -> str:
    group = rng.choice(("model", "encoder", "objective", "validation", "optimizer", "scheduler"))
    names = {
        "model": ("hidden_dim", "embed_dim", "attention_dim", "dropout", "attention", "gate"),
        "encoder": ("image_size", "resize", "trainable", "weights", "mean"),
    }.get(group, ("label_smoothing", "lr", "warmup", "max_length", "other"))
    name, value = rng.choice(names), deepcopy(rng.choice((*_ODD, 4, 64, 3000, 20_000, 10**6)))
    content["hyper_parameters"][group][name] = value
    return f"{group}.{name}: {type(value).__name__}"


def _weights(rng: random.Random, content: Content) -> str:
    if rng.random() < 0.5:  # as where they came from a file
        state: dict[str, Any] = {**_captioner().encoder.state_dict()}
        content["encoder"]["state_dict"] = state
    else:
        state = content["state_dict"]
    name = rng.choice(sorted(state))
    tensor: Tensor = state[name]
    number = tensor.clone()
    number.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf")))
    choices: dict[str, Callable[[], Any]] = {
        "NaN": lambda: number,
        "another shape": lambda: torch.zeros(*tensor.shape, 2),
        "fewer": lambda: tensor.reshape(-1)[:-1],
        "integers": lambda: tensor.long(),
        "complex": lambda: tensor.to(torch.complex64),
        "sparse": lambda: tensor.to_sparse(),
        "expanded": lambda: torch.zeros(1).expand(tensor.shape),
        "huge": lambda: torch.zeros(1).expand(10**6, 10**6),
        "no tensor": lambda: [1.0],
        "scalar": lambda: torch.tensor(1.0),
    }
    chosen = rng.choice(("removed", "added", *sorted(choices)))
    if chosen == "removed":
        del state[name]
    elif chosen == "added":
        state[f"{name}_2"] = tensor
    else:
        state[name] = choices[chosen]()
    return f"{name}: {chosen}"


def _nested(rng: random.Random, content: Content) -> str:
    value: Any = ["x"]
    case = rng.choice(("doubled", "deep", "in itself"))
    if case == "in itself":
        value.append(value)
    for _ in range(rng.choice((25, 60, 150))):
        value = [value, value] if case == "doubled" else [value] if case == "deep" else value
    place, key, name = rng.choice(_places(_ours(content)))
    (content if place.keys() == _ours(content).keys() else place)[key] = value
    return f"{name}: {case}"


# Strangers


def _names(rng: random.Random, content: Content) -> str:
    settings = content["hyper_parameters"]
    path = rng.choice(
        (
            f"{_MODULE}.Part",
            f"{_MODULE}.inner.Part",
            "antigravity.Part",
            "os.system",
            "builtins.eval",
            "torch.nn.Linear",
            "torch.hub.load",
            "captioning.apps.demo.main",
            "captioning.Captioner",
            f"captioning.{_MODULE}.Part",
            f"captioning.models.{_MODULE}.Part",
            f"..{_MODULE}.Part",
            f"captioning.models..{_MODULE}.Part",
            _MODULE,
            f"{_MODULE}.",
            f" {_MODULE}.Part",
            f"torch.optim.{_MODULE}.Part",
            f"{_MODULE}\n.Part",
            f"{_MODULE}." * 30 + "Part",
            "",
        )
    )
    role = rng.choice(
        ("model", "encoder", "objective", "validation", "attention", "attention as text")
    )
    if role == "attention":
        settings["model"]["attention"] = {"_target_": path}
    elif role == "attention as text":
        settings["model"]["attention"] = path
    elif rng.random() < 0.5:
        settings[role] = {"_target_": path}
    else:
        settings[role]["_target_"] = path
    return f"{role}: {path[:60]!r}"


def _unused_names(rng: random.Random, content: Content) -> str:
    role = rng.choice(("optimizer", "scheduler"))
    content["hyper_parameters"][role]["_target_"] = path = rng.choice(
        (f"{_MODULE}.Part", "os.system", f"torch.optim..{_MODULE}.Part", "torch.nn.Linear")
    )
    return f"{role}: {path}"


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _calling(rng: random.Random, content: Content) -> str:
    mark = f"import {_MODULE}"
    call = rng.choice((_Calls(exec, mark), _Calls(os.system, "true"), _Calls(__import__, _MODULE)))
    place, key, name = rng.choice(_places(_ours(content)))
    (content if place.keys() == _ours(content).keys() else place)[key] = call
    return f"{name}: {call.call[0].__name__}"


# What only a resumed training reads


def _of_lightning(rng: random.Random, content: Content) -> str:
    keys = ("epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")
    theirs = {key: content[key] for key in keys if key in content}
    for key in ("optimizer_states", "lr_schedulers"):
        theirs[f"first of {key}"] = theirs[key][0]
    place, key, name = rng.choice(_places(theirs))
    target = content if place.keys() == theirs.keys() else place
    if rng.random() < 0.4 or key not in target:
        target.pop(key, None)
        return f"without {name}"
    odd = deepcopy(rng.choice(_ODD))
    target[key] = odd
    return f"{name}={type(odd).__name__}"


_Kinds = dict[str, Callable[..., str]]

_BYTES: Final[_Kinds] = {
    "checkpoint, bits flipped": _flipped,
    "checkpoint, cut short": _cut,
    "checkpoint, a block of zeros": _hole,
    "checkpoint, bytes added": _appended,
    "file that is no checkpoint": _another_file,
}
_CONTENTS: Final[_Kinds] = {
    "checkpoint, an entry missing": _changing(_removed),
    "checkpoint, an entry of another type": _changing(_replaced),
    "checkpoint, an entry more": _changing(_added),
    "checkpoint, odd settings": _changing(_settings),
    "checkpoint, odd weights": _changing(_weights),
    "checkpoint, nested without end": _changing(_nested),
}
_HOSTILE: Final[_Kinds] = {
    "checkpoint that names a stranger's class": _changing(_names),
    "checkpoint that names a stranger's optimiser": _changing(_unused_names),
    "checkpoint that calls a function": _changing(_calling),
}
_RESUMED: Final[_Kinds] = {"checkpoint, odd state of the training": _changing(_of_lightning)}
_REFUSED: Final = {*_HOSTILE, "checkpoint, odd weights", "file that is no checkpoint"}
"""The kinds of which none may be loaded."""

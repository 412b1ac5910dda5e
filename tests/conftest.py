"""Fixtures of the whole suite."""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typechecks
from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from captioning.kernels.backend import Backend

if not torch.cuda.is_available():  # before Triton's first import, which is when it decides
    os.environ["TRITON_INTERPRET"] = "1"

typechecks.install()  # before any module of the package is imported

REPOSITORY = Path(__file__).resolve().parents[1]

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


LONG = (
    "test_scripts.py", "test_encoders.py", "test_caption_scorer.py", "test_jobs.py",
    "test_launchers.py", "test_captions_file.py", "test_caption.py", "test_right_layers.py",
    "test_decoding.py", "test_captioner.py", "test_demo.py", "test_distribution.py", "test_site.py",
    "test_tutorial.py", "test_examples.py", "test_additive.py", "test_ddp.py",
    "test_attention_images.py", "test_triton.py", "test_faults.py", "test_right_passes.py",
    "test_checkpoints.py", "test_onnx.py", "test_compilation.py", "test_notebook.py",
    "test_exported_models.py", "test_optimization.py", "test_meteor.py",
)  # fmt: skip
"""The files whose tests take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where processes share the tests, begin with the longest files, and end with the shortest.

    Otherwise one process may begin with the longest file when nothing is left for the others.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        count = Counter(item.path for item in items)
        place = {name: number for number, name in enumerate(LONG)}
        items.sort(key=lambda item: (place.get(item.path.name, len(LONG)), -count[item.path]))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported by now, which it would only walk through."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Undo it: hypothesis, which may be imported at the end, asks the collector what there is."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked as needing a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def compiling() -> Iterator[None]:
    """Let the processes that tests start use each other's bytecode, which saves a third of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def composing_once() -> Iterator[None]:
    """Keep Hydra from composing each configuration twice, for the scripts that tests run.

    Before a run, it composes the whole configuration to read ``hydra.mode`` alone, which only the
    files of ``conf/sweep/`` set.
    """
    from hydra._internal.hydra import Hydra

    get_mode = Hydra.get_mode

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        if any(each.startswith(("sweep=", "hydra.mode=")) for each in overrides):
            return get_mode(self, config_name, overrides)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", mode)
        yield


@pytest.fixture(scope="session")
def flickr8k_mini() -> Path:
    """The folder of 200 real Flickr8k images in all three layouts; skips where it is absent."""
    root = REPOSITORY.parent / "shared" / "flickr8k" / "mini"
    if not root.is_dir():
        pytest.skip("the 200 real images are not beside this checkout: ../shared/flickr8k/mini")
    return root


@pytest.fixture(scope="session")
def drawn_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 15 drawn pictures, every third one of them of the dev split."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    entries = []
    for number in range(15):
        colour = COLOURS[number % len(COLOURS)]
        picture = Image.new("RGB", (60, 40), colour)
        picture.paste("grey", (number, number, number + 20, number + 15))
        picture.save(root / "images" / f"{number:02}.png")
        captions = [f"a {colour} picture", f"a grey box on {colour}", f"{colour} and a box"]
        entries.append(
            {
                "filename": f"{number:02}.png",
                "split": "val" if number % 3 == 1 else "train",
                "sentences": [{"raw": caption} for caption in captions],
            }
        )
    entries[0]["split"] = "test"
    content = {"dataset": "flickr8k", "images": entries}
    (root / "dataset_flickr8k.json").write_text(json.dumps(content))
    return root


@pytest.fixture(autouse=True)
def _log_of_one_test() -> Iterator[None]:
    """Take away the handlers that Hydra leaves on the root logger: their streams are closed."""
    root = logging.getLogger()
    before = [*root.handlers]
    yield
    for handler in [*root.handlers]:
        # Not a subclass: pytest's own are, and pytest takes them away itself.
        if handler not in before and type(handler) in (logging.StreamHandler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random CLIP that knows the bytes alone as words."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: place for place, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(4)
    parts = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config=parts
        | {
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 40,
            "bos_token_id": len(words),
            "eos_token_id": len(words) + 1,
            "pad_token_id": len(words) + 1,
        },
        vision_config=parts | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    model = CLIPModel(config)
    for parameter in model.parameters():  # far enough apart; cosines of either sign
        torch.nn.init.normal_(parameter, std=0.6)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium without a network, one for the whole session; skips where none is."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver on the PATH")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("chromium")
    for option in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options, Service(driver))
    try:
        chrome.get("about:blank")  # instead of Chromium's own first page
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Choose what computes the ops in one test: ``torch``, ``C``, or ``Triton``.

    Triton runs in its interpreter on the CPU, in place of the C kernels.
    """
    from captioning.kernels import backend

    with ExitStack() as stack:

        def choose(implementation: str) -> None:
            load_kernels = backend.load_kernels
            if implementation == "C" and load_kernels("cpu") is None:
                pytest.skip("there is no C compiler")
            if implementation == "Triton":
                if torch.cuda.is_available():
                    pytest.skip("Triton compiles for the GPU here, and then does not interpret")
                launch = pytest.importorskip("captioning.kernels.triton.launch")
                monkeypatch.setattr(launch, "functions", untyped(launch.functions))
                stack.enter_context(patching_triton_once())
                load_kernels = functools.cache(lambda device: launch.TritonKernels())
                monkeypatch.setattr(backend, "load_kernels", load_kernels)
            # `native` rather than `auto`: no op may fall back for want of a compiler.
            choice: Backend = "torch" if implementation == "torch" else "native"
            stack.enter_context(backend.use_backend(choice))

        yield choose


@contextmanager
def patching_triton_once() -> Iterator[None]:
    """Let Triton's interpreter replace the functions of its language once, not in every call.

    Each call of one of its functions within a kernel looks again for all that is to be replaced,
    which took a third of the time of a kernel.
    """
    from triton.runtime import interpreter

    patch_lang = interpreter._patch_lang
    scopes: dict[frozenset[str], Any] = {}

    class Patched:
        def restore(self) -> None:
            """Nothing: the language is restored at the end of the test."""

    def patch_once(function: Any) -> Patched:
        names = (getattr(each, "__name__", "") for each in function.__globals__.values())
        language = frozenset(name for name in names if name.startswith("triton.language"))
        if language not in scopes:
            scopes[language] = patch_lang(function)
        return Patched()

    interpreter._patch_lang = patch_once
    try:
        yield
    finally:
        interpreter._patch_lang = patch_lang
        for scope in reversed(scopes.values()):
            if scope is not None:  # before Triton 3.5, the language stays as it is
                scope.restore()


@functools.cache
def untyped(module: ModuleType) -> ModuleType:
    """A copy of a module, without the type checks that the tests add to every function."""
    assert module.__spec__ is not None
    assert module.__spec__.origin is not None
    spec = importlib.util.spec_from_file_location("untyped", module.__spec__.origin)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy

"""Dependencies point one way: what each room of the package may import, read from its sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "captioning"

OPS = "kernels.ops"  # the one door to the kernels
DECODER = "models.decoders.base"  # the contract of decoders
ENCODER = "models.encoders.base"  # the contract of encoders

ALLOWED = {
    "support": (),
    "kernels": ("support",),
    "models": ("support", OPS),
    # The data module opens the features of the model's encoder, which it knows as an Encoder.
    # The stores of several encoders are read together as these are joined.
    "data": ("support", ENCODER, "models.encoders.joint"),
    "decoding": ("support", OPS, DECODER, "metrics.utility"),
    # CLIPScore reads image files as everything else does.
    "metrics": ("support", "data.images"),
    # An objective may generate captions, and score them.
    "objectives": ("support", OPS, DECODER, "decoding", "metrics"),
    # Training scores its splits by evaluation, which therefore knows nothing of training.
    "evaluation": (
        "support", "kernels.backend", "data", "decoding", "metrics", "reporting", "captioner",
        "ensembles", "trainer",
    ),
}  # fmt: skip
"""The rooms that know nothing of experiments, and what of the package each may import, besides
itself."""

FOR_TYPES_ALONE = {"objectives": ("data.batch", "data.datamodule")}
"""What may be imported under ``TYPE_CHECKING``, besides: a batch is given, and not made."""

LIBRARIES = {
    "hydra": (), "omegaconf": (), "wandb": (), "flask": (), "matplotlib": (), "jinja2": (),
    "pytorch_lightning": ("data/datamodule.py", "data/features/opened.py", "evaluation/"),
    "torchvision": ("data/", "models/encoders/", "metrics/clip_embeddings.py"),
    "timm": ("models/encoders/timm.py",),
    "pyarrow": ("data/readers/huggingface.py",),
    "pycocoevalcap": ("metrics/",),
    "triton": ("kernels/triton/",),
    "ctypes": ("kernels/cpu/", "support/memory.py"),
}  # fmt: skip
"""Libraries, and the only files or folders of these rooms that may import them."""


def sources(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, anywhere in it, and whether for type checkers alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this package"
            names = [full_name(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            yield name, node in for_types


def full_name(module: str, name: str) -> str:
    """``from a.b import c``: a.b.c where that is a module of ours, else a.b."""
    inside = PACKAGE.parent / f"{module}.{name}".replace(".", "/")
    is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
    return f"{module}.{name}" if is_module else module


def is_within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in allowed)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_what_the_table_allows(room: str) -> None:
    assert sources(room)
    for path in sources(room):
        for name, for_types in imports(path):
            if name.split(".")[0] != "captioning":
                continue
            allowed = (room, *ALLOWED[room], *(FOR_TYPES_ALONE.get(room, ()) if for_types else ()))
            module = name.removeprefix("captioning.")
            assert is_within(module, allowed), f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_place(library: str) -> None:
    for room in ALLOWED:
        for path in sources(room):
            place = path.relative_to(PACKAGE).as_posix()
            if not place.startswith(LIBRARIES[library] or "nowhere"):
                found = {name for name, _ in imports(path) if name.split(".")[0] == library}
                assert not found, f"{place} imports {library}"


def test_only_the_captioner_and_what_runs_experiments_choose_a_backend() -> None:
    """Models compute with the ops and do not ask which implementation computes them."""
    for room in ("models", "objectives", "decoding", "data", "metrics"):
        for path in sources(room):
            names = {name for name, _ in imports(path)}
            assert "captioning.kernels.backend" not in names, path
            assert "captioning.kernels.reference" not in names, path


def test_no_method_only_raises() -> None:
    """A base class demands of its subclasses what each of them has."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lone = body[0] if len(body) == 1 else None
                refuses = isinstance(lone, ast.Raise) and "NotImplementedError" in ast.dump(lone)
                assert not refuses, f"{path.relative_to(PACKAGE)}: {node.name}"


def test_nothing_imports_the_commands_but_the_command_line() -> None:
    # At its end, a sweep writes the leaderboard of its runs as the command would.
    may = ("apps/", "__main__.py", "cli/", "sweeps/summary.py")
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(may):
            continue
        for name, _ in imports(path):
            assert not name.startswith("captioning.apps"), f"{place} imports {name}"

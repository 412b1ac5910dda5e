"""``make docs``: the pages of ``docs/``, the tutorial and the docstrings as a site.

The pages are written for a reader of the repository: their links lead to files of it. They are
copied to ``build/book``, and their links changed: a link to a page leads to that page, one to a
module to its reference, one to another file of code to a page that shows it, and all others to a
copy of the file. The tutorial is converted from its notebook, and the reference gets a page for
each package. Zensical makes ``build/book/site`` from these, in its strict mode, which refuses
broken links. Formulas are MathML, which browsers draw without a script, so that nothing is fetched
from a network when the site is read.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
FOLDER = ROOT / "build" / "book"

# Pages from outside of docs/, and where they are in the site.
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "readme.md",
    "examples/README.md": "examples.md",
}
# The page to which a link to a folder leads.
FOLDERS = {
    "conf": "reference/configuration.md",
    "examples": "examples.md",
    "faults": "reliability.md",
    "docs/results/flickr8k": "results/flickr8k/leaderboard.md",
}
SHOWN = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".c": "c", ".toml": "toml"}
PROTOCOL = re.compile(r"^[a-z]+:")
# Code, which is left as it is, or the target of a link.
CODE_OR_LINK = re.compile(
    r"^ *```.*?^ *```|`[^`\n]*`|\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)


class Book:
    """The pages of the site, as they are written to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {(ROOT / source).resolve(): target for source, target in ELSEWHERE.items()} | {
            path.resolve(): path.relative_to(ROOT / "docs").as_posix()
            for path in sorted((ROOT / "docs").rglob("*.md"))
        }
        self.pages[(ROOT / "docs" / "tutorial.ipynb").resolve()] = "tutorial.md"
        self.shown: dict[Path, str] = {}

    def write(self, page: str, text: str) -> None:
        path = self.folder / "docs" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def add_pages(self) -> None:
        for source, page in self.pages.items():
            if source.suffix == ".md":
                self.write(page, self.linked(source.read_text(), source, page))

    def add_tutorial(self) -> None:
        """The notebook as a page; the cells that only prepare Colab are left out."""
        from nbconvert import MarkdownExporter
        from nbconvert.preprocessors import TagRemovePreprocessor

        source = ROOT / "docs" / "tutorial.ipynb"
        without = TagRemovePreprocessor(remove_cell_tags={"not-in-the-book"})
        text, resources = MarkdownExporter(preprocessors=[without]).from_filename(str(source))
        for name, content in resources["outputs"].items():  # the figures
            text = text.replace(f"({name})", f"(tutorial_files/{name})")
            target = self.folder / "docs" / "tutorial_files" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        self.write("tutorial.md", self.linked(text, source, "tutorial.md"))
        shutil.copy(source, self.folder / "docs")

    def linked(self, text: str, source: Path, page: str) -> str:
        """The text of a page with the links of the site; code is left as it is."""

        def replace(match: re.Match[str]) -> str:
            target, hash_mark, anchor = (match["target"] or "").partition("#")
            if not target or PROTOCOL.match(target) or target.startswith("tutorial_files/"):
                return match[0]
            path = (source.parent / target).resolve()
            if source.suffix == ".ipynb" and path == source:  # the notebook itself, to download
                return match[0]
            return f"]({self.place(path, page)}{hash_mark}{anchor})"

        return CODE_OR_LINK.sub(replace, text)

    def place(self, path: Path, page: str) -> str:
        """Where a link from a page to a file of the repository leads."""
        name = path.relative_to(ROOT).as_posix()
        if path in self.pages:
            target = self.pages[path]
        elif path.is_dir():
            target = next(
                FOLDERS[folder] for folder in FOLDERS if f"{name}/".startswith(f"{folder}/")
            )
        elif name.startswith("captioning/") and path.suffix == ".py":
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            package = name.rpartition("/")[0].replace("/", ".")
            return f"{relative(f'reference/{package}.md', page)}#{module}"
        elif path.suffix in SHOWN:
            target = self.shown.setdefault(path, f"source/{name}.md")
        else:
            target = f"files/{name}"
            copy = self.folder / "docs" / target
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        return relative(target, page)

    def add_sources(self) -> None:
        """The files of code to which links lead."""
        for path, page in self.shown.items():
            name = path.relative_to(ROOT).as_posix()
            self.write(page, f"# {name}\n\n{fence(path.read_text(), SHOWN[path.suffix])}\n")

    def add_reference(self) -> list[dict[str, str]]:
        """A page for each package, from its docstrings, and one of the configurations."""
        entries = []
        for folder in [ROOT / "captioning", *sorted(packages(ROOT / "captioning"))]:
            package = folder.relative_to(ROOT).as_posix().replace("/", ".")
            modules = [f"{package}.{path.stem}" for path in sorted(folder.glob("[!_]*.py"))]
            body = "\n".join(f"::: {module}\n" for module in modules)
            # Only the docstring of the package: what it exports is described in its modules.
            head = f"::: {package}\n    options: {{members: false}}\n"
            self.write(f"reference/{package}.md", f"# {package}\n\n{head}\n{body}")
            entries.append({package: f"reference/{package}.md"})
        lines = ["# Configuration files", ""]
        for path in sorted((ROOT / "conf").rglob("*.yaml")):
            name = path.relative_to(ROOT / "conf").with_suffix("").as_posix()
            lines += [f"## {name.replace('/', '=', 1)}", "", fence(path.read_text(), "yaml"), ""]
        self.write("reference/configuration.md", "\n".join(lines))
        return [{"Configuration files": "reference/configuration.md"}, *entries]


def packages(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("__init__.py"):
        if path.parent != folder:
            yield path.parent


def there(navigation: list[dict[str, Any]], docs: Path) -> list[dict[str, Any]]:
    """The entries of the navigation whose pages exist."""
    kept: list[dict[str, Any]] = []
    for entry in navigation:
        for title, page in entry.items():
            if isinstance(page, list):
                kept.append({title: there(page, docs)})
            elif (docs / page).exists():
                kept.append({title: page})
    return kept


def relative(target: str, page: str) -> str:
    return os.path.relpath(target, os.path.dirname(page) or ".")  # noqa: PTH120  parts of addresses


def fence(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def write_formulas(site: Path) -> None:
    r"""Replace TeX, which arithmatex has put into ``\(...\)`` and ``\[...\]``, by MathML."""
    from html import unescape

    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(unescape(match["tex"]).strip(), display=display)

    found = re.compile(
        r'<(?P<tag>span|div) class="arithmatex">'
        r"\s*\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]\s*</(?P=tag)>",
        re.DOTALL,
    )
    for path in site.rglob("*.html"):
        text = path.read_text()
        if "arithmatex" in text:
            path.write_text(found.sub(formula, text))


def main(folder: Path = FOLDER) -> None:
    """Build the site in a folder, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    book = Book(folder)
    book.add_pages()
    book.add_tutorial()
    reference = book.add_reference()
    book.add_sources()
    for name in ("book.css", "math.woff2", "iframe-worker.js"):
        shutil.copy(HERE / name, folder / "docs")
    shutil.copy(HERE / "roles.py", folder)
    config = yaml.safe_load((HERE / "mkdocs.yml").read_text())
    config["nav"] = [*there(config["nav"], folder / "docs"), {"Reference": reference}]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    built = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if built.returncode:
        raise SystemExit("The site was not built: see the warnings above.")
    write_formulas(folder / "site")
    print(f"Open {folder / 'site' / 'index.html'} in a browser.")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""The README and the pages of ``docs/`` against the package that they describe."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "docs" / "tutorial.ipynb",
)


def text_of(page: Path) -> str:
    """The Markdown of a page, without its blocks of code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.+?) *$", text_of(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def test_the_tree_of_the_package_has_one_line_for_each_module() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    tree = page.partition("\ncaptioning/\n")[2].partition("\n```")[0]
    folders: list[str] = []
    listed = []
    for line in tree.splitlines():
        indent, name, about = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        depth = len(indent) // 2 - 1
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert about, f"{name} has no description"
            listed.append("".join(folders) + name)
    modules = [
        path.relative_to(ROOT / "captioning").as_posix()
        for path in (ROOT / "captioning").rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(listed) == sorted(modules)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", text_of(page))
    for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), f"{target} is outside of the repository"
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, new = set(), [ROOT / "README.md"]
    while new:
        page = new.pop()
        found.add(page)
        targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text_of(page))
        linked = {(page.parent / target).resolve() for target in targets}
        new += [each for each in linked & set(PAGES) if each not in found]
    lost = [page for page in PAGES if page not in found]
    assert lost == []


def test_the_address_of_the_repository_is_the_same_everywhere() -> None:
    """While there is none, nothing asks the reader to clone a placeholder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"].get("Repository", "")
    readme = (ROOT / "README.md").read_text()
    cloned = re.search(r"^git clone (\S+)", readme, re.MULTILINE)
    assert (cloned[1] if cloned else "") == address
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert f'REPOSITORY = "{address}"\n' in first


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 700, "a page of docs/ may be the place"

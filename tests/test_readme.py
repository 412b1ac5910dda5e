"""The README and the pages of docs/ against the package that they describe."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


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


def test_links_to_files_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

"""``make docs``: the site is built, complete, without broken links, and needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """The names on a page, its links, and what a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(given["href"])
        if "src" in given:
            self.fetched.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("zensical", "nbconvert", "latex2mathml", "mkdocstrings_handlers"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("book") / "book"
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "site" / "build.py", folder],
        capture_output=True,
        text=True,
        cwd=folder.parent,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "files" not in path.parts}


def test_no_link_is_broken(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            names = pages[target].names if target in pages else {anchor}
            if not target.exists() or (anchor and anchor not in names):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_pages_are_shown_without_a_network(site: Path, pages: dict[Path, Page]) -> None:
    assert [link for page in pages.values() for link in page.fetched if urlsplit(link).netloc] == []
    sheets = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//|@import", sheets) == []


def test_site_has_the_tutorial_the_pages_and_the_reference(
    site: Path, pages: dict[Path, Page]
) -> None:
    for name in ("index", "tutorial", "settings", "metrics", "performance", "reliability"):
        assert (site / f"{name}.html") in pages
    decoding = pages[site / "reference" / "captioning.decoding.html"]
    assert "captioning.decoding.beam.Beam" in decoding.names
    tutorial = (site / "tutorial.html").read_text()
    assert "<math" in tutorial
    assert "arithmatex" not in tutorial  # no formula was left as TeX
    reference = "".join(path.read_text() for path in (site / "reference").iterdir())
    assert not re.search(r":(class|func|meth|mod|data|attr):<code>", reference)

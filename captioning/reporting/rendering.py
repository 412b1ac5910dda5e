"""Render the templates of ``pages/`` to self-contained pages with their styles and scripts."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PAGES: Final = Path(__file__).parent / "pages"


def render_page(
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **content: object,
) -> str:
    """Render a page that extends ``base.html.jinja``; what comes from ``content`` is escaped.

    The page's content security policy allows no other styles and scripts.

    Args:
        template: its file in ``pages/``.
        styles: style sheets there, in their order.
        scripts: JavaScript files there, in their order.
        filters: further filters of the template.
        content: the variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digest": _digest} | dict(filters or {})
    return environment.get_template(template).render(
        style=_joined(styles), script=_joined(scripts), **content
    )


def _joined(names: Sequence[str]) -> Markup:
    return Markup("\n".join((PAGES / name).read_text(encoding="utf-8") for name in names))


def _digest(text: str) -> str:
    """The digest by which a content security policy allows an inline block."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"

"""Render the templates in ``pages/`` to self-contained HTML pages."""

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
    """Render a page that extends ``base.html.jinja``. The values of ``content`` are escaped.

    Styles and scripts are embedded; the page's content security policy allows no others.

    Args:
        template: the template's file name in ``pages/``.
        styles: file names of style sheets in ``pages/``, in order.
        scripts: file names of JavaScript files in ``pages/``, in order.
        filters: additional filters of the template.
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

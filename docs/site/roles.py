"""The Sphinx roles of docstrings, such as ``:class:`Beam```, as links of mkdocstrings."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package when all of it has been read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Turn roles into links, and the ``::`` before examples into ``:``."""
        del kwargs
        for each in objects(pkg):
            if each.docstring is not None:
                text = ROLE.sub(lambda match, of=each: link(match, of, pkg), each.docstring.value)
                each.docstring.value = re.sub(r"::(?=\n\n)", ":", text)


def objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """An object, and everything that is defined in it."""
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from objects(member)


def link(match: re.Match[str], of: griffe.Object, package: griffe.Module) -> str:
    """The link of a role, or code if the site does not show what it names."""
    short, name = match[1], match[2]
    shown = name.rpartition(".")[2] if short else name
    try:
        path = name if name.startswith(f"{package.name}.") else of.resolve(name)
    except griffe.NameResolutionError:
        path = f"{of.path}.{name}"
    while path.startswith(f"{package.name}.") and "._" not in path:
        try:
            found = package.modules_collection[path]
        except KeyError:
            found = None
        if isinstance(found, griffe.Alias):  # the name under which a package exports it
            found, path = found.final_target, found.final_target.path
        if found is not None and (found.is_module or found.has_docstring):
            return f"[`{shown}`][{path}]"
        path = path.rpartition(".")[0]  # what has no docstring is described where it is defined
    return f"`{shown}`"

"""Self-contained HTML documents from templates.

Nothing is fetched from outside: style, script, drawings and sound are in the file, and its Content-Security-Policy
forbids everything else, whatever a text that is shown may hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from psclap.files import atomic_file

PAGE_NAME = "report.html"

_SHARED = "psclap.report"  # document.html, parts.html, style.css, sound.js


def write_document(
    path: Path | str,
    template: str,
    content: Mapping[str, Any],
    *,
    package: str = _SHARED,
    styles: Sequence[str] = ("style.css",),
    scripts: Sequence[str] = ("sound.js",),
) -> None:
    """Writes what a template that extends document.html makes of `content`: equal bytes for equal arguments.

    Templates, styles and scripts, in the order in which they follow each other, are those of `package`, and those
    that all documents share.
    """
    page = _environment(package, styles, scripts).get_template(template).render(content)
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def _environment(package: str, styles: Sequence[str], scripts: Sequence[str]) -> Environment:
    """Templates in which all that is put in is escaped, but for our own style and script."""
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, _SHARED))])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (
        Markup("\n".join(loader.get_source(environment, name)[0] for name in names)) for names in (styles, scripts)
    )
    digest = hashlib.sha256(script.encode()).digest()  # the policy lets this script run, and no other
    environment.globals.update(style=style, script=script, script_sha256=base64.b64encode(digest).decode())
    return environment

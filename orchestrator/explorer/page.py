"""The page: a frame that studies of every kind share, filled by the modules of one; served, or as a file by itself."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

#: Modules and style that every page has.
_MODULES = (
    "clusters.js", "colours.js", "dom.js", "fields.js", "frame.js", "legend.js", "notes.js", "panel.js", "polygon.js",
    "source.js",
)  # fmt: skip
_STYLE = "explorer.css"
_IMPORT_MAP = '{"imports":{"explorer/":"./static/"}}'
#: What a file by itself may load: itself.
_FILE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Page:
    """Parts of a page that belong to one kind of study, by names of files in ``static``."""

    #: Module that starts it.
    entry: str
    #: Its other modules.
    modules: tuple[str, ...]
    #: What its middle shows, in words.
    stage: str
    #: Its own style, None if the shared one is all.
    style: str | None = None

    @property
    def all_modules(self) -> tuple[str, ...]:
        """All modules that the browser loads."""
        return (*_MODULES, *self.modules, self.entry)

    @property
    def styles(self) -> tuple[str, ...]:
        """All styles, in their order."""
        return (_STYLE,) if self.style is None else (_STYLE, self.style)


@cache
def read_static(name: str) -> str:
    """Return a file of the page by its name in the package."""
    return (resources.files("orchestrator.explorer") / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


#: Content-Security-Policy of a served page.
POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{_hash(_IMPORT_MAP)}'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render_page(page: Page) -> str:
    """Return a page that asks its server."""
    return _fill(
        page,
        policy="",
        styles="\n".join(f'<link rel="stylesheet" href="./static/{name}">' for name in page.styles),
        imports=_IMPORT_MAP,
        entry=f'<script type="module" src="./static/{page.entry}"></script>',
    )


def render_file(page: Page, content: dict[str, Any]) -> str:
    """Return a page with its modules, styles and data inside, which asks nobody.

    Args:
        page: what it has of its own.
        content: data for its source, ready for JSON.
    """
    modules = {
        f"explorer/{name}": "data:text/javascript;base64," + base64.b64encode(read_static(name).encode()).decode()
        for name in page.all_modules
    }
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")  # "</script>" must not end it
    return _fill(
        page,
        policy=f'\n<meta http-equiv="Content-Security-Policy" content="{_FILE_POLICY}">',
        styles="<style>\n" + "".join(map(read_static, page.styles)) + "</style>",
        imports=json.dumps({"imports": modules}),
        entry=f'<script type="application/json" id="embedded">{data}</script>\n'
        f'<script type="module">import "explorer/{page.entry}";</script>',
    )


def _fill(page: Page, *, policy: str, styles: str, imports: str, entry: str) -> str:
    # The data come last: what they hold must not be taken for a place to fill.
    filled = read_static("frame.html").replace("<!-- POLICY -->", policy).replace("<!-- STYLES -->", styles)
    filled = filled.replace("IMPORT_MAP", imports).replace("STAGE_LABEL", page.stage)
    return filled.replace("<!-- ENTRY -->", entry)

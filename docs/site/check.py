"""Links of the built site: every one leads to a file and a place in it, and no page asks another machine for anything.

zensical's own strict build finds links to pages, anchors and references that do not exist; it does not look at links to
pictures, folders and other files, nor at what a page loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Attributes that hold an address. A reader follows the href of an anchor; a browser loads all others by itself.
_ADDRESSES = {"href", "src", "poster", "data"}


class _Page(HTMLParser):
    """Names and addresses of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the names and addresses of a tag."""
        for key, value in attrs:
            if value and (key == "id" or (tag == "a" and key == "name")):
                self.names.add(value)
            if value and key in _ADDRESSES:
                self.links.append((tag, value))


@cache
def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def find_dead_links(site: Path) -> Iterator[str]:
    """Yield a line for each link of the site that leads nowhere, and for each file that a browser would load elsewhere.

    Args:
        site: folder of the built site.
    """
    for file in sorted(site.rglob("*.html")):
        for tag, link in _read(file).links:
            problem = _find_problem(site, file, tag, link)
            if problem:
                yield f"{file.relative_to(site)}: {link}: {problem}"
    for file in sorted(site.rglob("*.css")):
        for address in re.findall(
            r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", file.read_text(encoding="utf-8")
        ):
            yield f"{file.relative_to(site)}: {address}: a browser would ask another machine for it"


def _find_problem(site: Path, file: Path, tag: str, link: str) -> str:
    """Return what is wrong with a link, an empty text if nothing is."""
    url = urlsplit(link)
    if url.netloc:
        return "" if tag == "a" else "a browser would ask another machine for it"
    if url.scheme:
        return ""  # mailto:, data:
    start = site if url.path.startswith("/") else file.parent
    target = (start / unquote(url.path).lstrip("/")) if url.path else file
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "there is no such file"
    if url.fragment and target.suffix == ".html" and unquote(url.fragment) not in _read(target).names:
        return "there is no such place in the page"
    return ""

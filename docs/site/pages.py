"""Pages of the site, collected into one folder: those of the repository with their links, and those that are made.

A link in a page leads to a file of the repository, so that it works where the repository is read. On the site it leads
to the page that shows this file: the same page for what is below docs/, the gallery for study files, and a page with
the text for any other file. A link to a file that does not exist stays as it is and fails the build (``check``).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

#: Files of the repository's root → their pages. The site has a front page of its own.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security_policy.md",
}
#: Folders that a page may link to → their pages.
FOLDERS = {"docs/decisions": "decisions/index.md", "configs": "gallery/index.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".md": "markdown"}
#: Where the code of a line begins or ends; a link that is shown as code is none.
_FENCE = re.compile(r"\s*(```+|~~~+)")
_LINK = re.compile(r"`[^`]*`|\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def find_page(root: Path, name: str) -> str | None:
    """Return the page or picture of the site that shows a file or folder of the repository, None if there is none.

    Args:
        root: root of the repository.
        name: path of the file or folder below ``root``, with forward slashes.
    """
    path = root / name
    if name in FOLDERS:
        return FOLDERS[name]
    if name.startswith("..") or not path.is_file():
        return None
    if name in ROOT_PAGES:
        return ROOT_PAGES[name]
    if name.startswith("configs/") and path.suffix == ".yaml":
        return f"gallery/{path.stem}.md"
    if name.startswith("docs/") and path.suffix in (".md", ".png", ".svg"):
        return name.removeprefix("docs/")
    return f"source/{name}.md"


def rewrite_links(text: str, name: str, root: Path) -> tuple[str, set[str]]:
    """Return a page with its links as they are on the site, and the files of the repository that need a page.

    Args:
        text: Markdown of the page.
        name: path of the page in the repository.
        root: root of the repository.
    """
    shown: set[str] = set()
    page = find_page(root, name) or name

    def rewrite(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:", target):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        there = find_page(root, file)
        if there is None:
            return match[0]
        if there.startswith("source/"):
            shown.add(file)
        return f"]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{match['anchor'] or ''})"

    lines, fence = [], ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        lines.append(line if fence or mark else _LINK.sub(rewrite, line))
    return "".join(lines), shown


def collect(root: Path, out: Path, made: dict[str, str], draw: Callable[[str], str]) -> None:
    """Write all pages to ``out/pages`` and the settings of the site to ``out/zensical.yml``.

    Args:
        root: root of the repository.
        out: folder to write; pages of an earlier build are removed.
        made: page → Markdown of the pages that are made from code; their links are those of the site.
        draw: function that returns the SVG of a Mermaid diagram.

    Raises:
        SystemExit: a page is in no part of the navigation, or the navigation names a page that does not exist.
    """
    pages = out / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    shown: set[str] = set()
    for name in _find_sources(root):
        page = find_page(root, name)
        if page is None or name == "README.md":
            continue
        target = pages / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix != ".md":
            shutil.copyfile(root / name, target)
            continue
        text, files = rewrite_links((root / name).read_text(encoding="utf-8"), name, root)
        target.write_text(_replace_diagrams(text, target, out / "diagrams", draw), encoding="utf-8")
        shown |= files
    for page, text in (made | {f"source/{name}.md": _show(root, name) for name in sorted(shown)}).items():
        (pages / page).parent.mkdir(parents=True, exist_ok=True)
        (pages / page).write_text(text, encoding="utf-8")
    for name in ("site.css", "logo.svg"):
        shutil.copyfile(root / "docs/site" / name, pages / name)
    settings = yaml.safe_load((root / "docs/site/zensical.yml").read_text(encoding="utf-8"))
    settings["nav"] = [_expand(entry, pages) for entry in settings["nav"]]
    _check_navigation(settings["nav"], pages)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).replace("- ROOT", f"- {root}")
    (out / "zensical.yml").write_text(text, encoding="utf-8")


def _find_sources(root: Path) -> Iterator[str]:
    """Yield the pages and pictures of the repository."""
    yield from (name for name in ROOT_PAGES if (root / name).is_file())
    for path in sorted((root / "docs").rglob("*")):
        if path.suffix in (".md", ".png", ".svg") and path.parent.name != "site":
            yield path.relative_to(root).as_posix()


def _show(root: Path, name: str) -> str:
    """Return a page with the text of a file, which the search leaves out."""
    text = (root / name).read_text(encoding="utf-8")
    fence = "`" * (2 + max(map(len, re.findall(r"`+", text)), default=1))
    code = f"{fence}{LANGUAGES.get(Path(name).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n{code}"


def _replace_diagrams(text: str, page: Path, cache: Path, draw: Callable[[str], str]) -> str:
    """Return the page with every Mermaid diagram as a picture beside it; drawn once, then taken from ``cache``."""

    def replace(match: re.Match[str]) -> str:
        file = cache / f"{hashlib.sha256(match[1].encode()).hexdigest()[:16]}.svg"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            file.write_text(draw(match[1]), encoding="utf-8")
        shutil.copyfile(file, page.parent / file.name)
        return f"![Diagram]({file.name}){{ .diagram }}"

    return _MERMAID.sub(replace, text)


def _expand(entry: Any, pages: Path) -> Any:
    """Return an entry of the navigation with ``folder/*`` replaced by the pages of the folder, its index first."""
    if isinstance(entry, list):
        return [_expand(each, pages) for each in entry]
    if isinstance(entry, dict):
        return {title: _expand(value, pages) for title, value in entry.items()}
    if not entry.endswith("/*"):
        return entry
    files = sorted(pages.glob(f"{entry}.md"), key=lambda file: (file.name != "index.md", file.name))
    return [file.relative_to(pages).as_posix() for file in files]


def _check_navigation(nav: Any, pages: Path) -> None:
    """Leave with an error if the navigation and the pages do not fit each other; pages of source are linked only."""
    named = set(_leaves(nav))
    found = {file.relative_to(pages).as_posix() for file in pages.rglob("*.md")}
    problems = [f"docs/site/zensical.yml names {page}, and there is no such page" for page in sorted(named - found)]
    for page in sorted(found - named):
        if not page.startswith("source/"):
            problems.append(f"{page} is in no part of nav in docs/site/zensical.yml; add it there")
    if problems:
        raise SystemExit("\n".join(problems))


def _leaves(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from _leaves(inner)

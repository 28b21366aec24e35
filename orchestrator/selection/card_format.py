"""Blocks of a model card, and their rendering as Markdown (with the Hub's front matter) and as one HTML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from orchestrator.report.page import Cell, Column, Section, callout, facts, note, table

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$css
table + .note, .scroll + .note { margin-top: 18px; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 12px; overflow-x: auto; }
ul { font-size: 14px; padding-left: 20px; max-width: 66em; }
</style>
</head>
<body>
<nav class="bar"><div class="wrap"><a class="brand" href="#top">RobustSweep</a>$nav</div></nav>
<main class="wrap" id="top">
<header>
<p class="eyebrow">$eyebrow</p>
<h1>$title</h1>
<p class="lede">$lede</p>
$warnings
</header>
$sections
<footer>One file that needs no network, made by RobustSweep from the study’s ledger.</footer>
</main>
</body>
</html>
"""
)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Name → value."""

    rows: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """A table of plain text; the first column is left-aligned, the others hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Lines of Python."""

    text: str


Block = Text | Items | Facts | Grid | Code


@dataclass(frozen=True)
class CardPart:
    """A section of the card."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card:
    """The whole card; every string is plain text."""

    title: str
    eyebrow: str
    lede: str
    #: Warnings that a reader must not miss: an oracle chose, trials are missing.
    warnings: Sequence[str]
    parts: Sequence[CardPart]
    #: Kind of network in the words of model hubs, and tags, for the front matter.
    pipeline_tag: str
    tags: Sequence[str]


# ------------------------------------------------------------------------------------------------ Markdown


def render_markdown(card: Card) -> str:
    """Return the card as Markdown with a YAML front matter, as model hubs read it."""
    lines = ["---", "library_name: robustsweep", f"pipeline_tag: {card.pipeline_tag}", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in card.tags]  # a JSON string is YAML
    lines += ["---", "", f"# {_plain(card.title)}", "", _plain(card.lede), ""]
    for warning in card.warnings:
        lines += [f"> **{_plain(warning)}**", ""]
    for part in card.parts:
        lines += [f"## {_plain(part.title)}", ""]
        for block in part.blocks:
            lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [_plain(block.text)]
    if isinstance(block, Items):
        return [f"- {_plain(item)}" for item in block.items]
    if isinstance(block, Facts):
        return [f"- **{_plain(name)}**: {_plain(value)}" for name, value in block.rows.items()]
    if isinstance(block, Code):
        return ["```python", block.text, "```"]
    rule = ["---", *["---:"] * (len(block.columns) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (map(_plain, block.columns), rule, *_plain_rows(block.rows))]


def _plain_rows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[_plain(cell) for cell in row] for row in rows]


def _plain(text: str) -> str:
    """Return ``text`` escaped for Markdown: names given by a user may contain anything."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


# ------------------------------------------------------------------------------------------------ HTML


def render_html(card: Card) -> str:
    """Return the card as one HTML file: styles inside, no script, nothing from the network."""
    css = (files("orchestrator.report") / "page.css").read_text(encoding="utf-8")
    sections = [
        Section(f"part-{number}", part.title, part.title, "\n".join(map(_html, part.blocks)))
        for number, part in enumerate(card.parts)
    ]
    nav = "".join(f'<a href="#{section.identifier}">{escape(section.name)}</a>' for section in sections)
    body = "\n".join(
        f'<section id="{section.identifier}"><h2>{escape(section.title)}</h2>\n{section.body}\n</section>'
        for section in sections
    )
    return _PAGE.substitute(
        title=escape(card.title),
        eyebrow=escape(card.eyebrow),
        lede=escape(card.lede),
        warnings="".join(callout(warning, "warn") for warning in card.warnings),
        css=css,
        nav=nav,
        sections=body,
    )


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return note(block.text)
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Facts):
        return facts(block.rows)
    if isinstance(block, Code):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    columns = [Column(name, is_number=number > 0, sortable=False) for number, name in enumerate(block.columns)]
    return table(columns, [[Cell(escape(cell)) for cell in row] for row in block.rows])

"""HTML frame of the page and its building blocks. All text from users or files is escaped here."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from orchestrator.report.style import Figure

#: A higher figure scrolls inside the page.
TALL_PX = 1400
#: Most rows of a table that is not broken over two sheets when printed.
SHORT_ROWS = 16
#: Smallest width of a saved figure.
SAVED_WIDTH_PX = 1000
_FIGURE = re.compile(r'<script type="application/json" id="([^"]+)">(.*?)</script>', re.DOTALL)
#: Characters that ``pack`` writes as others with the same last seven bits.
_MOVED = {ord(each): ord(each) + 256 for each in "\0\r<\x1a\x1b"}
_PACKED_FIGURES = re.compile(r'<script type="application/octet-stream" id="packed-figures">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Section:
    """One part of the page. ``body`` is HTML; identifier, name and title are plain text."""

    identifier: str
    #: Text in the navigation bar.
    name: str
    title: str
    body: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table. ``html`` is HTML; ``value`` is what the column is sorted by, "" for undefined."""

    html: str
    value: float | str | None = None
    css: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a table column (plain text)."""

    title: str
    is_number: bool = False
    sortable: bool = True


def render_page(
    *,
    title: str,
    eyebrow: str,
    question: str,
    lede: str,
    status: str,
    sections: Sequence[Section],
    footer: str,
) -> str:
    """Return the whole page, with plotly.js, styles and data inside and nothing from the network.

    plotly.js and the data of all figures are packed (``pack``): the page is a third as large.

    ``title``, ``eyebrow``, ``question``, ``lede`` and ``footer`` are plain text; ``status`` is HTML.
    """
    from plotly.offline import get_plotlyjs

    folder = files("orchestrator.report")
    read = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    nav = "".join(f'<a href="#{section.identifier}">{escape(section.name)}</a>' for section in sections)
    body = "\n".join(_section(section) for section in sections)
    figures = ",".join(f"{json.dumps(identifier)}:{payload}" for identifier, payload in _FIGURE.findall(body))
    return Template(read["html"]).substitute(
        title=escape(title),
        css=read["css"],
        js=read["js"],
        plotly=pack(get_plotlyjs()),
        figures=pack(f"{{{figures}}}"),
        nav=nav,
        eyebrow=escape(eyebrow),
        question=escape(question),
        lede=escape(lede),
        status=status,
        sections=_FIGURE.sub("", body),
        footer=escape(footer),
    )


def pack(text: str) -> str:
    """Return a text compressed (zlib), seven bits a character, as page.js unpacks it; safe inside an HTML element.

    A character's last seven bits count. A page is written in UTF-8, where the characters 0 to 127 take one byte. Those
    that would not survive are moved up by 256 and take two: NUL and carriage return, which HTML replaces, ``<``, which
    begins the end of the element, and two that a terminal or an old editor acts on, escape and substitute.
    """
    import numpy as np

    bits = np.unpackbits(np.frombuffer(zlib.compress(text.encode(), 9), np.uint8))
    rows = np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7)
    return (np.packbits(rows, axis=1) >> 1).tobytes().decode("ascii").translate(_MOVED)


def unpack(packed: str) -> str:
    """Return the text that ``pack`` packed."""
    import numpy as np

    characters = np.frombuffer(packed.encode("utf-16-le"), np.uint16).astype(np.uint8)
    bits = np.unpackbits(characters.reshape(-1, 1), axis=1)[:, 1:]
    return zlib.decompress(np.packbits(bits)[: bits.size // 8].tobytes()).decode()


def within(section: Section, label: str, number: int) -> Section:
    """Return a section as that of one part of the study, with identifiers of its own.

    Args:
        section: section about the part.
        label: name of the part.
        number: number of the part on the page.
    """
    body = re.sub(r'\b(id|data-figure|data-view)="figure-', rf'\1="figure-{number}-', section.body)
    name, title = (f"{label}: {text}" for text in (section.name, section.title))
    return Section(f"{section.identifier}-{number}", name, title, body)


def _section(section: Section) -> str:
    return f'<section id="{section.identifier}"><h2>{escape(section.title)}</h2>\n{section.body}\n</section>'


def note(text: str) -> str:
    """Return a paragraph of small explanatory text."""
    return f'<p class="note">{escape(text)}</p>'


def callout(text: str, kind: str = "", items: Sequence[str] = ()) -> str:
    """Return a framed remark with an optional list; ``kind`` is "", "warn" or "bad"."""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="callout {kind}">{escape(text)}{f"<ul>{listed}</ul>" if listed else ""}</div>'


def embed(figure: Figure, identifier: str) -> str:
    """Return a figure with its title, note, data and save buttons (HTML); ``render_page`` packs the data."""
    said: dict[str, Any] = {"data": figure.data, "layout": figure.layout, "axes": figure.axes, "title": figure.title}
    said |= {"height": figure.height_px, "width": max(figure.min_width_px, SAVED_WIDTH_PX)}
    payload = json.dumps(said, separators=(",", ":"), allow_nan=False)
    payload = payload.replace("<", "\\u003c")  # "</script>" inside a string would end the element
    scroll = "scroll tall" if figure.height_px > TALL_PX else "scroll"
    style = f"height:{figure.height_px}px" + (f";min-width:{figure.min_width_px}px" if figure.min_width_px else "")
    save = "".join(f'<button data-save="{kind}">{kind.upper()}</button>' for kind in ("svg", "png", "csv"))
    return (
        f"<figure><figcaption><h3>{escape(figure.title)}</h3>{note(figure.note)}</figcaption>"
        f'<div class="{scroll}"><div class="plot" role="img" aria-label="{escape(figure.title)}" style="{style}" '
        f'data-figure="{identifier}"></div></div>'
        f'<div class="save" aria-label="save this figure">{save}</div>'
        f'<script type="application/json" id="{identifier}">{payload}</script></figure>'
    )


def read_figures(page: str) -> dict[str, dict[str, Any]]:
    """Return identifier → figure of a page of ``render_page``: data, layout, axes, title, height, width."""
    packed = _PACKED_FIGURES.search(page)
    assert packed is not None
    figures: dict[str, dict[str, Any]] = json.loads(unpack(packed[1]))
    return figures


def views(figures: Mapping[str, Figure], identifier: str, caption: str) -> str:
    """Return figures shown one at a time, chosen by buttons named after the keys. In print, all are shown."""
    if len(figures) == 1:
        return embed(next(iter(figures.values())), identifier)
    buttons, blocks = [], []
    for number, (name, figure) in enumerate(figures.items()):
        view = f"{identifier}-{number}"
        pressed, hidden = ("true", "") if number == 0 else ("false", " hidden")
        buttons.append(f'<button data-view="{view}-view" aria-pressed="{pressed}">{escape(name)}</button>')
        which = f'<p class="which">{escape(caption)} {escape(name)}</p>'
        blocks.append(f'<div id="{view}-view"{hidden}>{which}{embed(figure, view)}</div>')
    return f'<div class="views">{escape(caption)} {"".join(buttons)}</div>{"".join(blocks)}'


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, tall: bool = False) -> str:
    """Return a table that a click on a heading sorts; a ``tall`` one scrolls inside the page."""
    head = "".join(_head(column) for column in columns)
    body = "".join("<tr>" + "".join(_cell(*pair) for pair in zip(row, columns, strict=True)) + "</tr>" for row in rows)
    scroll = "scroll tall" if tall else "scroll"
    short = ' class="short"' if len(rows) <= SHORT_ROWS else ""
    return f'<div class="{scroll}"><table{short}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(column: Column) -> str:
    css = ' class="num"' if column.is_number else ""
    sort = f' data-sort="{"number" if column.is_number else "text"}"' if column.sortable else ""
    return f"<th{css}{sort}>{escape(column.title)}</th>"


def _cell(cell: Cell, column: Column) -> str:
    css = " ".join(filter(None, ["num" if column.is_number else "", cell.css]))
    attributes = f' class="{css}"' if css else ""
    if cell.value is not None:
        attributes += f' data-value="{escape(str(cell.value))}"'
    return f"<td{attributes}>{cell.html}</td>"


def p_cell(value: float | None) -> Cell:
    """Return the cell of a p-value, a dash for None."""
    if value is None:
        return Cell("–", "")
    return Cell(f"{value:.3f}" if value >= 0.001 else "&lt; 0.001", value)


def facts(rows: Mapping[str, str]) -> str:
    """Return a list of name–value pairs, which are plain text."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    return f'<dl class="facts">{items}</dl>'


#: Longer tables scroll inside the page.
TALL_ROWS = 24

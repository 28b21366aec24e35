"""Figures of a written report as files: SVG or PNG, each with its data as CSV.

The figures are read back from the page, so that files and page show the same. Kaleido, Plotly's own exporter, draws
them in a Chrome or Chromium of this machine, with the same plotly.js as the page and without network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from orchestrator.ledger.derived import FIGURES, PAGE
from orchestrator.report.exports import figure_csv
from orchestrator.report.page import read_figures
from trainables.errors import InfrastructureError, StudyError
from trainables.storage.folder import Folder

FORMATS = ("svg", "png")

#: Pixels per CSS pixel of a PNG: 2,000 px wide, sharp in print at half a page's width.
SCALE = 2

#: Light colours of page.css, because paper is white.
_INK, _SOFT, _GRID, _LINE, _FAINT = "#16202a", "#55626f", "#e9edf1", "#dfe4e9", "#8a95a1"
_FONT = 'Inter, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'


def write_figures(root: Folder, format: str) -> list[str]:
    """Write every figure of a report as image and CSV, and return their paths or URIs.

    Args:
        root: folder of a study's ledger that has a report.
        format: svg or png.

    Raises:
        StudyError: the format is unknown, or kaleido is not installed.
        InfrastructureError: no browser was found, or it failed.
        StorageError: the storage refuses.
    """
    if format not in FORMATS:
        raise StudyError(f"asked for figures as {format!r}; expected one of {', '.join(FORMATS)}")
    figures = read_figures(root.read(PAGE).decode())
    images = draw({name: (figure, format) for name, figure in figures.items()})
    written = []
    for name, figure in figures.items():
        stem = f"{FIGURES}/{name.removeprefix('figure-')}"
        for suffix, content in ((format, images[name]), ("csv", figure_csv(figure).encode())):
            root.write(f"{stem}.{suffix}", content)
            written.append(f"{root.uri.rstrip('/')}/{stem}.{suffix}")
    return written


def draw(wanted: Mapping[str, tuple[Mapping[str, Any], str]]) -> dict[str, bytes]:
    """Return name → image, for figures as ``page.read_figures`` returns them, each in its own format.

    Raises:
        StudyError: kaleido is not installed.
        InfrastructureError: no browser was found, or it failed.
    """
    try:
        import choreographer.errors
        import kaleido
    except ImportError as error:
        raise StudyError(
            "asked for figures as files and found no kaleido; install it (pip install 'robustsweep[figures]'), or save "
            "them in a browser: every figure of the page has buttons for SVG, PNG and CSV"
        ) from error

    async def draw_all() -> dict[str, bytes]:
        async with kaleido.Kaleido(n=1, mathjax=False) as browser:
            return {name: await browser.calc_fig(*_describe(*each)) for name, each in wanted.items()}

    try:
        return asyncio.run(draw_all())
    except choreographer.errors.ChromeNotFoundError as error:
        raise InfrastructureError(
            "asked for figures as files and found no Chrome or Chromium to draw them; install one, name it in the "
            "environment variable BROWSER_PATH, or run `kaleido_get_chrome`"
        ) from error
    except (choreographer.errors.BrowserFailedError, choreographer.errors.BrowserClosedError) as error:
        raise InfrastructureError(
            f"the browser that draws figures failed: {error}; try it with BROWSER_PATH"
        ) from error


def _describe(figure: Mapping[str, Any], format: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return figure and options in the form that kaleido expects."""
    options = {"format": format, "width": figure["width"], "height": figure["height"]}
    return {"data": figure["data"], "layout": _light_layout(figure["layout"])}, options | {
        "scale": SCALE if format == "png" else 1
    }


def _light_layout(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout with the colours that page.js sets on a light page."""
    themed = {**layout, "paper_bgcolor": "#fff", "plot_bgcolor": "#fff"}
    themed["font"] = {"family": _FONT, "size": 12, "color": _INK}
    axis = {"gridcolor": _GRID, "zerolinecolor": _FAINT, "linecolor": _LINE, "tickfont": {"color": _SOFT, "size": 11.5}}
    for name, own in layout.items():
        if name.startswith(("xaxis", "yaxis")):
            title = {"title": {**own["title"], "font": {"size": 12, "color": _SOFT}}} if "title" in own else {}
            themed[name] = axis | own | title
    return themed

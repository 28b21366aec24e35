"""Tables for papers, and figures as files."""

import csv
import importlib.util
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.tables.formats import escape_latex, escape_markdown, write_latex, write_markdown
from orchestrator.report import figure_files
from orchestrator.report.exports import figure_csv, figure_rows
from orchestrator.report.figure_files import write_figures
from orchestrator.report.page import Section, embed, read_figures, render_page
from orchestrator.report.style import Figure
from tests.report.test_write import render
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from trainables.errors import StudyError
from trainables.storage.folder import Folder

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
has_browser = importlib.util.find_spec("kaleido") is not None and any(map(shutil.which, BROWSERS))


def make_figure(**trace: Any) -> dict[str, Any]:
    """Return a figure as it is read back from a page."""
    figure = Figure("Why?", "n = 2", [{"type": "scatter", "mode": "markers", **trace}], {}, 100, axes=("a", "b", "c"))
    section = Section("s", "s", "s", embed(figure, "figure-x"))
    words = dict.fromkeys(("title", "eyebrow", "question", "lede", "status", "footer"), "")
    return read_figures(render_page(**words, sections=[section]))["figure-x"]


def test_latex_sets_what_is_written() -> None:
    assert escape_latex("a_b & 5 % of {x} #1 ~^\\") == (
        r"a\_b \& 5 \% of \{x\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape_latex("90.1 ± 0.2 × −1 <") == r"90.1 $\pm$ 0.2 $\times$ $-$1 \textless{}"
    text = write_latex(["arm", "n"], [["a_b", "3"]], texts=1, caption="100 %", label="arms")
    rules = [line for line in text.splitlines() if line in ("\\toprule", "\\midrule", "\\bottomrule")]
    assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert "\\begin{tabular}{lr}" in text
    assert "a\\_b & 3 \\\\" in text
    assert "\\caption{100 \\%}" in text


def test_markdown_cells_stay_in_their_column() -> None:
    assert escape_markdown("a|b_c\n*d*") == "a\\|b\\_c \\*d\\*"
    lines = write_markdown(["arm", "n"], [["a|b", "3"]], texts=1, caption="Arms").splitlines()
    assert lines == ["Arms", "", "| arm | n |", "| :-- | --: |", "| a\\|b | 3 |"]


def test_paper_tables_lie_beside_the_page(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, fate=Fate(missing=1))
    _, page = render(ledger, tmp_path)
    folder = Path(ledger.root.uri) / "report"
    arms = (folder / "arms.tex").read_text(encoding="utf-8")
    assert arms.count(" \\\\\n") == 1 + 12
    assert "1 of 2" in arms
    assert "spectral\\_decoupling" in arms
    assert (folder / "effects.md").read_text(encoding="utf-8").count("\n| ") == 2 + 2 * 4
    assert all(f'href="{name}"' in page for name in ("arms.tex", "arms.md", "effects.tex", "effects.md"))


# ------------------------------------------------------------------ data of a figure


def test_rows_of_dots_have_panel_series_deviation_and_what_they_carry() -> None:
    figure = make_figure(
        x=[1, 2],
        y=[3, None],
        name="A &amp; B",
        error_y={"array": [0.1, 0.2]},
        customdata=[[5], [6]],
        hovertext=["x<br><b>y</b>", "z"],
        meta={"panel": "p", "columns": ["n"]},
    )
    assert figure_rows(figure) == [
        {"panel": "p", "series": "A & B", "a": 1, "b": 3, "b sd": 0.1, "label": "x; y", "n": 5},
        {"panel": "p", "series": "A & B", "a": 2, "b": None, "b sd": 0.2, "label": "z", "n": 6},
    ]
    assert figure_csv(figure).splitlines() == [
        "panel,series,a,b,b sd,label,n",
        "p,A & B,1,3,0.1,x; y,5",
        "p,A & B,2,,0.2,z,6",
    ]


def test_rows_of_lines_are_counted_and_guides_left_out() -> None:
    assert figure_rows(make_figure(x=[1, 2, None, 1], y=[5, 6, None, 7])) == [
        {"line": 0, "a": 1, "b": 5},
        {"line": 0, "a": 2, "b": 6},
        {"line": 1, "a": 1, "b": 7},
    ]
    assert figure_rows(make_figure(x=[1], y=[1], hoverinfo="skip")) == []


def test_rows_of_training_curves_name_their_trial(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=2)
    _, page = render(ledger, tmp_path)
    rows = [row for row in figure_rows(read_figures(page)["figure-training"]) if row["panel"] == "training loss"]
    drawn = {(row["signature"], row["epoch"]): row["value"] for row in rows}
    written = {
        (record.signature, line["epoch"]): float(f"{line['metrics']['train/loss']:.5g}")
        for record in ledger.records("trial")
        for line in record.epochs
    }
    assert drawn == written
    assert len(drawn) == len(rows)


def test_rows_of_a_heat_map_are_its_cells() -> None:
    figure = make_figure(type="heatmap", x=["s", "t"], y=["arm"], z=[[0.5, None]])
    assert figure_rows(figure) == [{"a": "s", "b": "arm", "c": 0.5}, {"a": "t", "b": "arm", "c": None}]


def test_every_figure_of_a_page_has_buttons_and_a_table(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path, replicates=3), tmp_path)
    figures = read_figures(page)
    assert page.count('<div class="save"') == len(figures) >= 9
    for name, figure in figures.items():
        rows = list(csv.DictReader(io.StringIO(figure_csv(figure))))
        assert rows, name
        assert set(figure["axes"][:2]) <= set(rows[0]), name


# ------------------------------------------------------------------ files


def test_figures_are_written_with_their_data_and_go_with_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    render(ledger, tmp_path)
    monkeypatch.setattr(figure_files, "draw", lambda wanted: {name: name.encode() for name in wanted})
    written = write_figures(ledger.root, "svg")
    folder = Path(ledger.root.uri) / "report" / "figures"
    assert {Path(path) for path in written} == set(folder.iterdir())
    assert (folder / "heat.svg").read_bytes() == b"figure-heat"
    assert (folder / "heat.csv").read_text(encoding="utf-8").startswith("shift,arm,balanced accuracy,n,policy\n")
    render(ledger, tmp_path)
    assert not folder.exists()


def test_without_kaleido_one_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    monkeypatch.setitem(sys.modules, "choreographer", None)
    with pytest.raises(StudyError, match=r"pip install 'robustsweep\[figures\]'"):
        figure_files.draw({"figure-x": (make_figure(x=[1], y=[2]), "svg")})
    Folder(tmp_path).write("report/index.html", b"")
    with pytest.raises(StudyError, match="expected one of svg, png"):
        write_figures(Folder(tmp_path), "pdf")


@pytest.mark.skipif(not has_browser, reason="needs the extra `figures` and a Chrome or Chromium")
@pytest.mark.parametrize(("format", "head"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_browser_draws_them(format: str, head: bytes) -> None:
    assert figure_files.draw({"figure-x": (make_figure(x=[1], y=[2]), format)})["figure-x"].startswith(head)

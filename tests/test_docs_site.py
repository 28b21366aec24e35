"""The site: links as they become, pages that are made from the code, and what fails the build."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.site.__main__ import build
from docs.site.check import find_dead_links
from docs.site.cli_reference import describe_commands
from docs.site.gallery import describe_decisions, describe_gallery, describe_python
from docs.site.pages import collect, find_page, rewrite_links
from docs.site.study_reference import describe_study
from orchestrator.study.study_file import Study
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[data](data.md#folders)", "[data](data.md#folders)"),
        ("[decision](decisions/0014-the-layout.md)", "[decision](decisions/0014-the-layout.md)"),
        ("[all](decisions)", "[all](decisions/index.md)"),
        ("[studies](../configs)", "[studies](gallery/index.md)"),
        ("[one](../configs/search.yaml)", "[one](gallery/search.md)"),
        ("[`run`](../orchestrator/driver/run.py)", "[`run`](source/orchestrator/driver/run.py.md)"),
        ("[how](../CONTRIBUTING.md)", "[how](contributing.md)"),
        ("![picture](images/report.png)", "![picture](images/report.png)"),
        ("[elsewhere](https://example.org/a.md)", "[elsewhere](https://example.org/a.md)"),
        ("`[code](../configs/search.yaml)`", "`[code](../configs/search.yaml)`"),
        ("[dead](../configs/nowhere.yaml)", "[dead](../configs/nowhere.yaml)"),
        ("```\n[code](../configs)\n```", "```\n[code](../configs)\n```"),
    ],
)
def test_a_link_leads_to_the_page_of_its_file(link: str, expected: str) -> None:
    assert rewrite_links(link, "docs/shifts.md", ROOT)[0] == expected


def test_a_link_starts_at_its_own_page() -> None:
    text, shown = rewrite_links(
        "[m](../metrics.md) [t](../../trainables/trial.py)", "docs/decisions/0014-the-layout.md", ROOT
    )
    assert text == "[m](../metrics.md) [t](../source/trainables/trial.py.md)"
    assert shown == {"trainables/trial.py"}
    assert rewrite_links("[a](docs/data.md)", "CONTRIBUTING.md", ROOT)[0] == "[a](data.md)"
    assert find_page(ROOT, "../other/file.py") is None


def test_every_field_of_the_study_file_is_on_a_page() -> None:
    """With its default and an example that the field accepts: making the pages checks each of them."""
    pages = describe_study()
    assert set(pages) >= {f"reference/study/{name}.md" for name in ("index", "data", "training", "execution")}
    for name in Study.model_fields:
        assert f"## `{name}`" in pages["reference/study/index.md"]
    text = pages["reference/study/execution.md"]
    assert (
        "## `stall_minutes` {#execution-stall_minutes}\n\nnumber above 0 · minutes · default `30.0` · example "
        "`stall_minutes: 30.0`\n\nA trial that reports nothing for so long is ended." in text
    )
    assert "### `budget.gpu_hours`" in text
    assert "## Every kind\n\n### `image_size`" in pages["reference/study/data.md"]


def test_every_command_is_on_the_page() -> None:
    page = describe_commands()
    for command in ("run", "plan", "report", "shifts preview", "data check"):
        assert f"## {command}\n" in page
    assert "| `--retry-failed` | Try failed trials again. |" in page
    assert "Exit codes: 0 all trials complete" in page


def test_every_shipped_study_and_decision_has_its_page() -> None:
    pages = describe_gallery(ROOT)
    assert set(pages) == {"gallery/index.md"} | {f"gallery/{p.stem}.md" for p in (ROOT / "configs").glob("*.yaml")}
    assert "replicates = " in pages["gallery/quickstart.md"]
    assert describe_decisions(ROOT).count("\n- [") == len(list((ROOT / "docs/decisions").glob("*.md")))
    assert "::: robustsweep.load_study" in describe_python()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one page and the settings of the site, whose navigation is that page."""
    (tmp_path / "docs/site").mkdir(parents=True)
    for name in ("site.css", "logo.svg"):
        (tmp_path / "docs/site" / name).write_bytes((ROOT / "docs/site" / name).read_bytes())
    settings = yaml.safe_load((ROOT / "docs/site/zensical.yml").read_text(encoding="utf-8"))
    settings["nav"] = ["index.md"]
    (tmp_path / "docs/site/zensical.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


GOOD = "# Page\n\n[this](#page) [that](index.md)\n"


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("::: trainables.errors.redact", []),
        ("::: trainables.errors.nothing", ["Could not collect 'trainables.errors.nothing'"]),
        (
            "[dead](nowhere.md)\n\n[dead](#nowhere)\n\n[unresolved][trainables.errors.nothing]",
            ["page does not exist", "anchor does not exist", "unresolved autoref"],
        ),
        (
            '[dead](../configs/nowhere.yaml) ![dead](nowhere.png) <img src="https://example.org/a.png">',
            [
                "../configs/nowhere.yaml: there is no such file",
                "nowhere.png: there is no such file",
                "https://example.org/a.png: a browser would ask another machine",
            ],
        ),
    ],
    ids=["nothing", "no such object", "what zensical finds", "what it does not look at"],
)
def test_what_is_planted_fails_the_build(small: Path, planted: str, said: list[str]) -> None:
    (small / "docs/index.md").write_text(f"{GOOD}\n{planted}\n", encoding="utf-8")
    collect(small, small / "build", {}, lambda source: source)
    settings = small / "build/zensical.yml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(small), str(ROOT)), encoding="utf-8")
    problems = build(small / "build")
    assert bool(problems) == bool(said), problems
    for text in said:
        assert text in "\n".join(problems)


def test_a_page_outside_of_the_navigation_is_an_error(small: Path) -> None:
    (small / "docs/index.md").write_text(GOOD, encoding="utf-8")
    (small / "docs/lost.md").write_text("# Lost\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"lost\.md is in no part of nav"):
        collect(small, small / "build", {}, lambda source: source)
    (small / "docs/lost.md").unlink()
    (small / "docs/index.md").unlink()
    with pytest.raises(SystemExit, match=r"names index\.md, and there is no such page"):
        collect(small, small / "build", {}, lambda source: source)


def test_a_diagram_becomes_a_picture(small: Path) -> None:
    (small / "docs/index.md").write_text(f"{GOOD}\n```mermaid\nflowchart TD\n  a --> b\n```\n", encoding="utf-8")
    drawn: list[str] = []

    def draw(source: str) -> str:
        drawn.append(source)
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"

    for _ in range(2):  # the second time it is there already
        collect(small, small / "build", {}, draw)
    assert drawn == ["flowchart TD\n  a --> b\n"]
    page = (small / "build/pages/index.md").read_text(encoding="utf-8")
    assert "mermaid" not in page
    assert ".svg){ .diagram }" in page


def test_a_dead_link_of_a_built_page_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="x">A</h1><a href="b.html#y">1</a><a href="b.html#z">2</a><a href="gone/">3</a>'
        '<a href="https://example.org">4</a><script src="//example.org/s.js"></script>',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<p id="y"></p>', encoding="utf-8")
    (tmp_path / "c.css").write_text("@import url(https://example.org/f.css);", encoding="utf-8")
    assert list(find_dead_links(tmp_path)) == [
        "a.html: b.html#z: there is no such place in the page",
        "a.html: gone/: there is no such file",
        "a.html: //example.org/s.js: a browser would ask another machine for it",
        "c.css: https://example.org/f.css: a browser would ask another machine for it",
    ]


def test_the_build_is_one_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "docs.site", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout

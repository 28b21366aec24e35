"""Build the site: ``python -m docs.site [--out FOLDER]``; a dead link or a reference to nothing fails it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from docs.site.check import find_dead_links
from docs.site.cli_reference import describe_commands
from docs.site.gallery import describe_decisions, describe_gallery, describe_python
from docs.site.pages import collect
from docs.site.study_reference import describe_study

ROOT = Path(__file__).resolve().parents[2]


def draw_diagram(source: str) -> str:
    """Return the SVG of a Mermaid diagram, in its own size instead of the width of the page."""
    import mermaidx

    svg = str(mermaidx.render(source).svg())
    size = re.search(r'viewBox="[-.0-9]+ [-.0-9]+ ([.0-9]+) ([.0-9]+)"', svg)
    if size is None:
        raise ValueError(f"drew {source.splitlines()[0]} and found no viewBox in the SVG of mermaidx, expected one")
    return svg.replace('width="100%"', f'width="{size[1]}" height="{size[2]}"', 1)


def build(out: Path) -> list[str]:
    """Return the problems of the site, after building it into ``out/site`` from the pages in ``out/pages``."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(out / "zensical.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [done.stdout + done.stderr]
    return list(find_dead_links(out / "site"))


def main() -> None:
    """Parse the command line, collect the pages and build the site."""
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build/docs", help="folder to write (default build/docs)")
    out = parser.parse_args().out.absolute()
    made = describe_study() | describe_gallery(ROOT)
    made["reference/cli.md"] = describe_commands()
    made["reference/python.md"] = describe_python()
    made["decisions/index.md"] = describe_decisions(ROOT)
    collect(ROOT, out, made, draw_diagram)
    problems = build(out)
    if problems:
        sys.exit("\n".join(problems))
    print(f"wrote {out / 'site/index.html'}")


if __name__ == "__main__":
    main()

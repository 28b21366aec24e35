"""Pages of the gallery: a page per shipped study, with its question, size, report and file."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from orchestrator.study.study_file import Study, load_study

_HEAD = """# Gallery

Studies that are shipped with RobustSweep, each with the report it ended in.

| study | what it asks | size |
|---|---|---|
"""
_NO_PICTURE = "There is no picture of its report yet: the study has not been run for this page.\n"


def describe_gallery(root: Path) -> dict[str, str]:
    """Return page → Markdown of the gallery.

    Args:
        root: root of the repository; studies are in ``configs``, pictures of their reports in
            ``docs/images/gallery/<study file>.png``, that of the quickstart in ``docs/images/report.png``.
    """
    pages, rows = {}, ""
    for file in sorted((root / "configs").glob("*.yaml"), key=lambda path: (path.stem != "quickstart", path.stem)):
        study = load_study(file)
        pages[f"gallery/{file.stem}.md"] = _describe(root, file, study)
        rows += f"| [{study.study}]({file.stem}.md) | {study.question} | {_describe_size(study)} |\n"
    return {"gallery/index.md": _HEAD + rows} | pages


def _describe(root: Path, file: Path, study: Study) -> str:
    text = file.read_text(encoding="utf-8").rstrip()
    picture = f"images/{'report' if file.stem == 'quickstart' else f'gallery/{file.stem}'}.png"
    shown = f"![The report of the study {study.study}](../{picture})\n"
    return "\n".join(
        [
            f"# {study.study}\n",
            f"**{study.question}** {_describe_size(study).capitalize()}.\n",
            f"```sh\nrobustsweep run configs/{file.name}\n```\n",
            shown if (root / "docs" / picture).is_file() else _NO_PICTURE,
            *(f"- *{each.name}*: {each.claim}" for each in study.hypotheses),
            f"\n## The file\n\n```yaml\n{text}\n```\n",
        ]
    )


def _describe_size(study: Study) -> str:
    """Return the numbers of arms, replicates and trials in words."""
    if study.search is not None:
        num_trials = study.search.num_trials * study.replicates
        return f"{study.search.num_trials} configurations × {study.replicates} replicates = {num_trials} trials"
    num_arms = len(study.arms())
    return f"{num_arms} arms × {study.replicates} replicates = {num_arms * study.replicates} trials"


def describe_decisions(root: Path) -> str:
    """Return the page that lists the decisions, each by its title."""
    rows = ["# Decisions\n", "What departs from the design, or closes a door, half a page each.\n"]
    for file in sorted((root / "docs/decisions").glob("*.md")):
        title = re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        if title is None:
            raise ValueError(f"{file}: found no heading, expected one in the first line")
        rows.append(f"- [{title[1]}]({file.name})")
    return "\n".join(rows) + "\n"


def describe_python() -> str:
    """Return the page of the Python functions, whose text mkdocstrings takes from the docstrings."""
    import robustsweep

    parts = ["# Python\n", "The names of `import robustsweep`, and the errors they raise.\n"]
    parts += [f"::: robustsweep.{name}\n" for name in sorted(robustsweep.__all__) if name != "__version__"]
    options = yaml.safe_dump({"options": {"members": False, "show_docstring_description": True}})
    indented = "\n".join(f"    {line}" for line in options.splitlines())
    return "\n".join([*parts, f"::: trainables.errors\n{indented}\n"])

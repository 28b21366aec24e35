"""Checklists for authors, filled from a study: each answer has a link to its place, the rest is marked *author*."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.analysis.results import Results, load_results, results_sha256
from orchestrator.analysis.wording import plural
from orchestrator.ledger.derived import PAGE, TABLES, read_verdicts
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.preregistration import DELETED, read_versions, trace_hypotheses
from orchestrator.planning.ceteris_paribus import read_differences, read_matching
from orchestrator.planning.states import COMPLETE
from orchestrator.report.checklist_items import ALL, CHECKLISTS, Item
from orchestrator.study.hypotheses import describe_comparison, read_hypothesis
from trainables.data.describe import describe_conversions, describe_similar
from trainables.errors import StudyError
from trainables.storage.folder import Folder

_SECTION = re.compile(r'<section id="([^"]+)">')
#: Order of the sets that every study has; external sets follow.
_SETS = {"train": 0, "val": 1, "test": 2}
_PLAN, _HYPOTHESES = "../plan.json", "../hypotheses.json"


@dataclass(frozen=True)
class Answer:
    """Something that the study says about an item."""

    text: str
    #: Place where it is written: a path from the folder of the report, perhaps with the anchor of a section.
    place: str
    #: Key in that file, "" for all of it.
    key: str = ""


@dataclass(frozen=True)
class Source:
    """Results, verdicts and places from which a checklist is filled."""

    results: Results
    #: Rows of ``verdicts.csv``.
    verdicts: Sequence[Mapping[str, str]]
    #: Places that exist.
    places: frozenset[str]

    @property
    def plan(self) -> Mapping[str, Any]:
        """Content of ``plan.json``."""
        return self.results.plan

    @property
    def data(self) -> Mapping[str, Any]:
        """Description of the data in ``plan.json``."""
        return self.plan["data"]

    def values(self, section: str, field: str) -> list[str]:
        """Return the values that a field of the config has in the trials that started, in ascending order."""
        configs = (record.config["config"][section] for record in self.results.records.values())
        return sorted({str(config[field]) for config in configs if field in config})


def write_checklist(ledger: Ledger, name: str) -> str:
    """Write ``report/checklist-<name>.md`` beside an existing report, and return its path or URI.

    Args:
        ledger: ledger of the study, with a report.
        name: claim or tripod-ai.

    Raises:
        StudyError: there is no such checklist.
        StorageError: the ledger is damaged, or the storage refuses.
    """
    if name not in CHECKLISTS:
        raise StudyError(f"asked for the checklist {name!r}; expected one of {', '.join(CHECKLISTS)}")
    results = load_results(ledger)
    source = Source(results, read_verdicts(ledger.root), find_places(ledger.root))
    title, items = CHECKLISTS[name]
    path = f"report/checklist-{name}.md"
    ledger.root.write(path, render_checklist(title, items, source).encode())
    return f"{ledger.root.uri.rstrip('/')}/{path}"


def find_places(root: Folder) -> frozenset[str]:
    """Return the places that answers can link to: sections of the page, tables, files of the ledger."""
    sections = _SECTION.findall(root.read(PAGE).decode())
    files = {f"../{name}" for name in ("plan.json", "hypotheses.json") if root.exists(name)}
    return frozenset(f"index.html#{section}" for section in sections) | files | set(TABLES)


def fill(item: Item, source: Source) -> tuple[list[Answer], str]:
    """Return the answers that the study has for an item, and what its author has to write ("" for nothing)."""
    by_fact = {
        fact: [each for each in _find_answers(fact, source) if each.text.strip() and each.place in source.places]
        for fact in item.facts
    }
    answers = [answer for found in by_fact.values() for answer in found]
    if not answers:
        return [], ALL
    lacking = [fact.replace("_", " ") for fact, found in by_fact.items() if not found]
    return answers, "; ".join(filter(None, [item.author, ", ".join(lacking)]))


def _find_answers(fact: str, source: Source) -> list[Answer]:
    """Return the answers to a fact; those about the data once for each data set, with its label."""
    found = list(FACTS[fact](source))
    parts = source.results.split_by_data_set()
    if parts and any(each.place == _PLAN and each.key.startswith("data") for each in found):
        found = [
            replace(each, text=f"{label}: {each.text}", key=each.key.replace("data", f"data_sets.{label}", 1))
            for label, part in parts.items()
            for each in FACTS[fact](replace(source, results=part))
        ]
    # With several data sets a section of the page is there once for each; the first stands for all.
    return [each if each.place in source.places else replace(each, place=f"{each.place}-1") for each in found]


def render_checklist(title: str, items: Sequence[Item], source: Source) -> str:
    """Return a checklist as Markdown."""
    filled = [(item, *fill(item, source)) for item in items]
    done = sum(bool(answers) for _, answers, _ in filled)
    lines = [
        f"# {title}: {_cell(source.plan['study'])}",
        "",
        f"{done} of {len(filled)} items have answers from the study; *author* marks what its author has to write. "
        f"Results: sha256 `{results_sha256(source.results)}`.",
        "",
        "| item | asks for | answer |",
        "|---|---|---|",
    ]
    for item, answers, author in filled:
        texts = [_describe(answer) for answer in answers] + [f"*author*: {_cell(author)}"] * bool(author)
        lines.append(f"| {item.number} | {_cell(item.asks)} | {'<br>'.join(texts)} |")
    return "\n".join(lines) + "\n"


def _describe(answer: Answer) -> str:
    key = f" `{answer.key}`" if answer.key else ""
    return f"{_cell(answer.text)} ([{answer.place.removeprefix('../')}]({answer.place}){key})"


def _cell(text: str) -> str:
    """Return text for a cell of a table: one line, with Markdown's and HTML's own signs escaped."""
    return re.sub(r"([\\|*_`\[\]<>])", r"\\\1", " ".join(text.split()))


# --------------------------------------------------------------------------- facts


def _hypotheses(source: Source) -> list[Any]:
    return [each for each in trace_hypotheses(read_versions(source.plan)) if each.status != DELETED]


def _claims(source: Source) -> Iterator[Answer]:
    for each in _hypotheses(source):
        yield Answer(f"{each.name}: {each.content['claim']}", _HYPOTHESES)


def _compared(source: Source) -> Iterator[Answer]:
    for each in _hypotheses(source):
        hypothesis = read_hypothesis(each.content)
        if hypothesis is not None:
            yield Answer(f"{each.name}: {describe_comparison(hypothesis)}", "index.html#verdicts")


def _metrics(source: Source) -> Iterator[Answer]:
    for each in _hypotheses(source):
        said = {key: each.content[key] for key in ("direction", "smallest_effect", "margin") if key in each.content}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in said.items())
        yield Answer(f"{each.name}: {each.content['metric']}, {text}", _HYPOTHESES)


def _registration(source: Source) -> Iterator[Answer]:
    for each in _hypotheses(source):
        yield Answer(f"{each.name}: {each.status}, {each.remark}", _HYPOTHESES)


def _differences(source: Source) -> Iterator[Answer]:
    for each in _hypotheses(source):
        lines = read_differences(source.plan, each.name)
        if lines is not None:
            yield Answer(f"{each.name}: {'; '.join(lines) or 'nothing'}", _PLAN, "differences")
        key = "tuning" if "tuning" in source.plan else ""
        yield Answer(f"{each.name}: {read_matching(source.plan, each.name)}", _PLAN, key)


def _units(source: Source) -> Iterator[Answer]:
    for row in source.verdicts:
        if row.get("effect"):
            yield Answer(f"{row['name']}: {row['over']}", "verdicts.csv", "over")


def _correction(source: Source) -> Iterator[Answer]:
    families = Counter(each.content["family"] for each in _hypotheses(source) if each.content.get("over") != "shifts")
    for family, count in families.items():
        yield Answer(f"Holm, family {family}: {count} claimed", "index.html#verdicts")


def _effects(source: Source) -> Iterator[Answer]:
    for row in source.verdicts:
        if row["verdict"]:
            numbers = [f"{key} {row[key]}" for key in ("effect", "low", "high", "p", "p_holm") if row.get(key)]
            yield Answer(f"{row['name']}: {', '.join([row['verdict'], *numbers])}", "verdicts.csv")


def _trainings(source: Source) -> Iterator[Answer]:
    counts = source.results.counts
    arms = plural(int(source.results.trials["name"].nunique()), "arm")
    yield Answer(f"{arms}, {counts['planned']} trainings planned, {counts[COMPLETE]} complete", "trials.csv")


def _left_out(source: Source) -> Iterator[Answer]:
    counts = source.results.counts
    others = [f"{count} {state}" for state, count in counts.items() if count and state not in ("planned", COMPLETE)]
    yield Answer(", ".join(others) or "no planned trial is missing", "index.html#left-out")


def _split(source: Source) -> Iterator[Answer]:
    counts = dict(sorted(source.data["num_images"].items(), key=lambda item: _SETS.get(item[0], len(_SETS))))
    text = ", ".join(f"{name} {count:,} images" for name, count in counts.items())
    yield Answer(text, _PLAN, "data.num_images")


def _groups(source: Source) -> Iterator[Answer]:
    if source.data.get("num_patients"):
        yield Answer("all images of a patient (group) are in one set", _PLAN, "data.num_patients")


def _per_set(key: str, noun: str) -> Callable[[Source], Iterator[Answer]]:
    """Return the fact of numbers per set that newer plans hold under ``data``."""

    def find(source: Source) -> Iterator[Answer]:
        counts = source.data.get(key) or {}
        known = {name: count for name, count in counts.items() if count is not None}
        if known:
            text = ", ".join(f"{name} {plural(count, noun)}" for name, count in known.items())
            yield Answer(text, _PLAN, f"data.{key}")

    return find


def _external(source: Source) -> Iterator[Answer]:
    names = source.results.external_sets
    if names:
        yield Answer(f"evaluated on the external sets {', '.join(names)}", "shifts.csv", "set")


def _field(section: str, field: str) -> Callable[[Source], Iterator[Answer]]:
    """Return the fact of the values that a field of the config has in the trials."""

    def find(source: Source) -> Iterator[Answer]:
        values = source.values(section, field)
        if values:
            yield Answer(f"{section}.{field}: {', '.join(values)}", "index.html#provenance", f"{section}.{field}")

    return find


def _question(source: Source) -> Iterator[Answer]:
    yield Answer(source.plan["question"], _PLAN, "question")


def _data(source: Source) -> Iterator[Answer]:
    yield Answer(f"{source.data['name']} ({source.data['kind']})", _PLAN, "data")


def _classes(source: Source) -> Iterator[Answer]:
    yield Answer(f"classes: {', '.join(map(str, source.data['classes']))}", _PLAN, "data.classes")


def _images(source: Source) -> Iterator[Answer]:
    yield Answer(plural(len(source.data["quarantined"]), "image") + " set aside", "index.html#left-out")
    if "similar" in source.data:
        similar = source.data["similar"]
        yield Answer(f"near-duplicates: {describe_similar(similar['counts'], similar['unchecked'])}", _PLAN, "data")


def _conversions(source: Source) -> Iterator[Answer]:
    if source.data.get("conversions"):
        yield Answer(f"intensities: {describe_conversions(source.data['conversions'])}", _PLAN, "data.conversions")


def _versions(source: Source) -> Iterator[Answer]:
    versions = ", ".join(f"{name} {version}" for name, version in source.plan["versions"].items() if version)
    yield Answer(versions, _PLAN, "versions")
    if source.plan["git_commit"]:
        yield Answer(f"git commit {source.plan['git_commit']}", _PLAN, "git_commit")


def _fingerprint(source: Source) -> Iterator[Answer]:
    yield Answer(f"fingerprint of the data {source.data['fingerprint']}", _PLAN, "data.fingerprint")


def _study_file(source: Source) -> Iterator[Answer]:
    yield Answer(f"study file, sha256 {source.plan['study_sha256']}", _PLAN, "study_sha256")


def _arms(source: Source) -> Iterator[Answer]:
    if len(source.results.complete):
        yield Answer("mean, standard deviation and n of every arm", "arms.csv")


def _measures(source: Source) -> Iterator[Answer]:
    yield Answer(", ".join(measure.title for measure in source.results.measures), "arms.csv")


#: Name of a fact → function that yields what the study says; nothing if it does not know.
FACTS: dict[str, Callable[[Source], Iterator[Answer]]] = {
    "arms": _arms,
    "claims": _claims,
    "class_weights": _field("training", "class_weights"),
    "classes": _classes,
    "compared": _compared,
    "conversions": _conversions,
    "correction": _correction,
    "data": _data,
    "data_fingerprint": _fingerprint,
    "differences": _differences,
    "effects": _effects,
    "external": _external,
    "groups": _groups,
    "images": _images,
    "left_out": _left_out,
    "measures": _measures,
    "metrics": _metrics,
    "models": _field("model", "name"),
    "patients": _per_set("num_patients", "patient"),
    "question": _question,
    "registration": _registration,
    "selection": _field("training", "select_by"),
    "sites": _per_set("num_sites", "site"),
    "split": _split,
    "study_file": _study_file,
    "trainings": _trainings,
    "units": _units,
    "versions": _versions,
}

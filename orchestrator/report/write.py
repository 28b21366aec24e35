"""Writer of the report: one HTML file and its tables, made from a ledger."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from orchestrator.analysis.balanced_errors import balanced_errors_table
from orchestrator.analysis.costs import arm_costs_table, costs_table
from orchestrator.analysis.effects import Effect, compute_all_effects, effects_table
from orchestrator.analysis.failure_detection import DetectionRows, EnsembleScores, failure_table, load_detection_rows
from orchestrator.analysis.inference.verdicts import NO_VERDICT, NOT_ENOUGH, Verdict, judge, verdicts_table
from orchestrator.analysis.predictions.ensemble import score_ensemble
from orchestrator.analysis.results import Results, load_results, results_sha256
from orchestrator.analysis.tables.arms import arms_table, find_best_arm
from orchestrator.analysis.tables.formats import TextTable
from orchestrator.analysis.wording import plural, sentence
from orchestrator.ledger.derived import (
    FIGURES,
    PAGE,
    PAPER_TABLES,
    SOURCE,
    TABLES,
    Report,
    Source,
    compute_state,
    find_task,
    locate_report,
    write_source,
)
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.usage import describe_compute, find_usage, read_budget_status
from orchestrator.planning.budget import BudgetStatus, Usage
from orchestrator.planning.plan import describe_skipped_briefly
from orchestrator.report.checklist_items import CHECKLISTS
from orchestrator.report.examples import Examples, build_examples
from orchestrator.report.exports import paper_tables
from orchestrator.report.glossary import glossary_section
from orchestrator.report.overview import notes_section, overview_section
from orchestrator.report.page import Section, render_page, within
from orchestrator.report.sections import provenance
from orchestrator.report.sections.answer import Answer, answer, answer_section, arms_section
from orchestrator.report.sections.attribution.section import attribution_section
from orchestrator.report.sections.balanced import balanced_section
from orchestrator.report.sections.detection.marked import marked_section
from orchestrator.report.sections.detection.ood import ood_section
from orchestrator.report.sections.detection.scores import failure_section
from orchestrator.report.sections.effects import effects_section
from orchestrator.report.sections.interactions import interactions_section
from orchestrator.report.sections.provenance import left_out_section
from orchestrator.report.sections.representation.section import representation_section
from orchestrator.report.sections.search import search_section
from orchestrator.report.sections.segmentation.section import segmentation_section
from orchestrator.report.sections.shifts import examples_section, shifts_section
from orchestrator.report.sections.spread import spread_section
from orchestrator.report.sections.trade_off import trade_off_section
from orchestrator.report.sections.training import cost_section, training_section
from orchestrator.report.sections.transfer import transfer_section
from orchestrator.report.sections.tuning import tuning_section
from orchestrator.report.sections.verdicts import summarise_verdicts, verdict_section
from trainables.config import read_trial_config
from trainables.errors import RobustSweepError
from trainables.storage.folder import Folder


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause garbage collection: 10,000 records are millions of objects without cycles (2 s of 5 s reading them)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_gc_paused()
def write_report(ledger: Ledger, *, cache_dir: Path, metric: str | None = None, examples: bool = True) -> Report:
    """Write ``report/index.html`` and its tables into the ledger, also for an unfinished study.

    Args:
        ledger: ledger of the study.
        cache_dir: folder of this node's decoded images, for the examples.
        metric: metric that arms are compared by, one of ``results.TITLES``; None: that of the task.
        examples: whether to draw an image under every shift; needs torch and the data.

    Raises:
        StudyError: the study was never planned, or the metric is unknown.
        StorageError: the ledger is damaged, or the storage refuses.
    """
    states = ledger.states()  # read first: if they change meanwhile, the report counts as outdated
    state = compute_state(ledger.read_plan(), states)
    results = load_results(ledger, metric, states=states)
    digest, usage = results_sha256(results), find_usage(ledger)
    budget_status = read_budget_status(ledger, results.plan.get("budget"), states)  # older plans have no budget
    whole, verdicts = _compute(results), _judge(results, ledger)
    # What is ranked, chosen or drawn side by side is of one data set.
    parts = {label: _compute(part) for label, part in results.split_by_data_set().items()} or {"": whole}
    pictures = {
        label: _examples(part.results, cache_dir) if examples else (None, None) for label, part in parts.items()
    }
    detections = {label: load_detection_rows(part.results, ledger) for label, part in parts.items()}
    images_dir = cache_dir if examples else None
    ensembles = {label: _score_chosen(part, ledger, detections[label], images_dir) for label, part in parts.items()}
    failures = [failure_table(part.results, detections[label], ensembles[label]) for label, part in parts.items()]
    shown = {label: (part.results, part.words, part.arms) for label, part in parts.items()}
    sections = [overview_section(results, verdicts, shown), verdict_section(results, verdicts)]
    if len(parts) > 1:
        overall = effects_section(results, whole.shown)
        sections += [] if overall is None else [within(overall, "All data sets", 0)]
    for number, (label, part) in enumerate(parts.items(), start=1):
        detected = detections[label], ensembles[label]
        drawn = (*pictures[label], images_dir)
        of_part = _list_sections(part, ledger, detected, usage if part is whole else None, drawn)
        sections += of_part if part is whole else [within(each, label, number) for each in of_part if each is not None]
    provenance_of_all = provenance.provenance_section(
        results, digest=digest, files=TABLES | PAPER_TABLES, compute=describe_compute(ledger, budget_status)
    )
    words = glossary_section(find_task(results.plan))
    ending = [notes_section(results), left_out_section(results), provenance_of_all, words]
    page = _render(results, [*sections, *ending], budget_status)
    tables = {
        "trials.csv": results.trained.text["trials"],
        "arms.csv": TextTable(whole.arms),
        "shifts.csv": results.text["shifts"],
        "effects.csv": TextTable(effects_table([effect for rows in whole.effects.values() for effect in rows])),
        "balanced_errors.csv": TextTable(whole.balanced),
        "failure_detection.csv": TextTable(pd.concat(failures, ignore_index=True)),
        "verdicts.csv": TextTable(verdicts_table(verdicts)),
        "costs.csv": TextTable(arm_costs_table(results, whole.costs)),
    }
    papers = paper_tables(results, whole.arms, whole.shown)
    _write(ledger.root, page, {n: table.csv() for n, table in tables.items()} | papers)
    answers = {label: part.words for label, part in parts.items()}
    report = locate_report(
        ledger.root,
        summary="\n".join([_summary(results, answers, budget_status), *summarise_verdicts(verdicts)]),
        counts=results.counts,
        results_sha256=digest,
        page_sha256=hashlib.sha256(page.encode()).hexdigest(),
    )
    has_examples = any(each is not None for each, _ in pictures.values())
    write_source(ledger.root, Source(state, results.metric, examples=has_examples), report)
    return report


@dataclass(frozen=True)
class _Computed:
    """Numbers of a study, or of its arms on one data set."""

    results: Results
    arms: pd.DataFrame
    #: Measure → effects on it.
    effects: dict[str, list[Effect]]
    balanced: pd.DataFrame
    costs: pd.DataFrame

    @property
    def main(self) -> list[Effect]:
        """Effects on the mean shifted metric."""
        return self.effects.get(f"robustness/mean_{self.results.metric}", [])

    @property
    def shown(self) -> dict[str, list[Effect]]:
        """Effects that the page shows."""
        metric = self.results.metric
        return {c: self.effects[c] for c in (f"robustness/mean_{metric}", f"id/{metric}") if c in self.effects}

    @cached_property
    def words(self) -> Answer:
        """The answer in words."""
        return answer(self.results, self.arms, self.main)


def _compute(results: Results) -> _Computed:
    # The arms of a search are no grid, so they cannot be paired.
    measures = [] if "search" in results.plan else results.measures
    effects = compute_all_effects(results, [measure.column for measure in measures])
    if results.tested_on:  # levels that are tested on other images do not compare
        effects = {
            measure: [each for each in found if _is_same_test(results, each)] for measure, found in effects.items()
        }
    return _Computed(
        results,
        arms_table(results),
        {measure: found for measure, found in effects.items() if found},
        balanced_errors_table(results),
        costs_table(results),
    )


def _is_same_test(results: Results, effect: Effect) -> bool:
    """Return whether the arms of both levels of an effect have the same test images."""
    column = results.trials[f"arm/{effect.factor}"]
    of_levels = (
        sorted(results.tested_on.get(str(name), ()) for name in results.trials["name"][column == level].unique())
        for level in (effect.level, effect.reference)
    )
    return len(set(map(tuple, of_levels))) == 1


def _score_chosen(
    part: _Computed, ledger: Ledger, rows: DetectionRows | None, images_dir: Path | None
) -> EnsembleScores | None:
    """Return the deep ensemble of the arm that validation chooses."""
    chosen = find_best_arm(part.results, part.arms, f"val/{part.results.metric}")
    if rows is None or find_task(part.results.plan) == "classification":
        return score_ensemble(part.results, ledger, rows, chosen)
    from orchestrator.analysis.segmentation.ensemble import score_segmentations  # imports torch

    return score_segmentations(part.results, ledger, chosen, images_dir)


def _list_sections(
    part: _Computed,
    ledger: Ledger,
    detected: tuple[DetectionRows | None, EnsembleScores | None],
    usage: Usage | None,
    drawn: tuple[Examples | None, str | None, Path | None],
) -> list[Section | None]:
    """Return the sections on the arms of one data set.

    Args:
        part: tables of the data set.
        ledger: ledger of the study.
        detected: rows of failure detection, and the chosen arm's ensemble.
        usage: what the whole study has used.
        drawn: examples of shifts, or why there are none, and the folder of decoded images for overlays.
    """
    results, arms, main = part.results, part.arms, part.main
    (detections, ensemble), (pictures, problem, cache_dir) = detected, drawn
    return [
        answer_section(part.words),
        search_section(results),
        tuning_section(results),
        arms_section(results, arms) if len(arms) else None,
        effects_section(results, part.shown),
        interactions_section(results, main),
        spread_section(results),
        shifts_section(results, arms, main),
        balanced_section(results, part.balanced),
        failure_section(results, ledger, detections, ensemble, arms),
        ood_section(results, detections, ensemble, arms),
        marked_section(results, ledger),
        representation_section(results, ledger),
        attribution_section(results, ledger, cache_dir),
        segmentation_section(results, ledger, ensemble, arms, cache_dir),
        transfer_section(results, main),
        trade_off_section(results, arms, main),
        training_section(results, main),
        cost_section(results, part.costs, main, usage),
        examples_section(pictures, problem),
    ]


def _render(results: Results, parts: Sequence[Section | None], budget_status: BudgetStatus | None) -> str:
    study = results.plan["study"]
    return render_page(
        title=f"{study}: robustness report",
        eyebrow=f"Robustness study · {study}",
        question=results.plan["question"] or study,
        lede=provenance.lede(results),
        status=provenance.status(results, budget_status),
        sections=[part for part in parts if part is not None],
        footer="One file that needs no network, made by RobustSweep from the study’s ledger.",
    )


def _judge(results: Results, ledger: Ledger) -> list[Verdict]:
    """Return the verdicts, those that were decided with their interval over patients."""
    verdicts = judge(results)
    if all(each.verdict in (NO_VERDICT, NOT_ENOUGH) for each in verdicts):
        return verdicts
    from orchestrator.analysis.inference.over_patients import add_patient_intervals  # imports torch

    return add_patient_intervals(results, ledger, verdicts)


def _examples(results: Results, cache_dir: Path) -> tuple[Examples | None, str | None]:
    """Return the examples, or the reason why there are none: a report must not fail because images have moved."""
    records = list(results.records.values())
    if not records:
        return None, "No trial has started, so it is not known which images to show."
    try:
        config = read_trial_config(records[0].config["config"])
        if config.evaluation.is_matched:
            from trainables.evaluation.severities.matching import with_strengths  # imports torch

            stage = next((each.result for each in results.stages if each.signature == config.matching), None)
            if stage is None:
                return None, "No examples are shown: the stage that chooses the severities is not complete."
            config = config.model_copy(update={"evaluation": with_strengths(config.evaluation, stage["matching"])})
        return build_examples(config, cache_dir=cache_dir), None
    except RobustSweepError as error:
        return None, f"No examples are shown, because the images could not be had here: {error}"


def _write(root: Folder, page: str, tables: dict[str, str]) -> None:
    root.remove(SOURCE)
    for older in (FIGURES, *(f"report/checklist-{name}.md" for name in CHECKLISTS)):
        root.remove(older)
    for name, text in tables.items():
        root.write(f"report/{name}", text.encode())
    root.write(PAGE, page.encode())  # last, so that a page never lies beside older tables


def _summary(results: Results, words: Mapping[str, Answer], budget_status: BudgetStatus | None) -> str:
    counts = results.counts
    lines = [
        ", ".join(
            f"{count} {state.replace('_', ' ')}" for state, count in counts.items() if count or state == "complete"
        )
    ]
    held_back = provenance.describe_held_back(results, budget_status)
    lines += [held_back] if held_back is not None else []
    lines += [
        f"{sentence(remark)} ({plural(len(arms), 'arm')})."
        for remark, arms in provenance.group_remarks(results.plan).items()
    ]
    for label, each in words.items():
        on = f"{label}: " if label else ""
        lines += [] if each.problem is None else [on + each.problem]
        lines += [f"{on}{s.heading}: {s.headline}. {s.text}" for s in each.statements]
    skipped = results.plan["skipped"]
    if skipped:
        lines += [f"Left out of the plan: {line}" for line in describe_skipped_briefly(skipped)]
    return "\n".join(lines)

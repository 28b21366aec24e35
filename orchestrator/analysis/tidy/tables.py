"""Tables of the report's statistics for results from elsewhere, in Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.inference.verdicts import Corrected, assess, correct, decide
from orchestrator.analysis.tables.formats import TextTable, write_latex, write_markdown
from orchestrator.analysis.tidy.reading import StatsConfig
from orchestrator.analysis.tidy.results import SEED, TidyResults
from orchestrator.ledger.preregistration import PREREGISTERED, Registered
from orchestrator.statistics.factorial import Contrast, compute_contrasts, decompose_variance
from orchestrator.statistics.intervals import MIN_REPLICATES, drop_rounding, summarise, t_interval
from orchestrator.statistics.paired_tests import min_units
from orchestrator.statistics.power import compute_power, minimum_replicates, upper_sd
from orchestrator.study.hypotheses import Hypothesis, describe_comparison, describe_hypothesis
from trainables.storage.folder import Folder

_DASH = "–"
#: Headings of the tables' own columns, which a factor may be called as well.
_TAKEN = frozenset({"measure", "metric", "mean", "sd", "low", "high", "n", "shift"})
_TAKEN |= {"seeds", "planned", "evaluations", "missing", "undefined", "empty at severity"}


@dataclass(frozen=True)
class Table:
    """One table: its numbers and how they are displayed."""

    name: str
    caption: str
    #: Content, one row per line of the table, numbers not rounded.
    frame: pd.DataFrame
    #: Number of text columns, at the left.
    texts: int
    #: Whether the table is too long for a terminal.
    is_long: bool = False

    def markdown(self) -> str:
        """Return the table in Markdown, with rounded numbers."""
        return write_markdown(self._head, self._cells(), texts=self.texts, caption=self.caption)

    def latex(self) -> str:
        """Return the table in LaTeX, with rounded numbers."""
        return write_latex(self._head, self._cells(), texts=self.texts, caption=self.caption, label=self.name)

    @property
    def _head(self) -> list[str]:
        return [str(column) for column in self.frame]

    def _cells(self) -> list[list[str]]:
        return [[_format(name, value) for name, value in row.items()] for row in self.frame.to_dict("records")]


def _format(column: Any, value: Any) -> str:
    if pd.isna(value):
        return _DASH
    if isinstance(value, float) and (column == "p" or str(column).startswith(("p ", "probability"))):
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:.3g}"
    return text.replace("-", "−")


def compute_tables(config: StatsConfig, measured: TidyResults) -> list[Table]:
    """Return the tables that are not empty in reading order: verdicts first, single shifts last."""
    contrasts = {
        measure: compute_contrasts(
            measured.trials,
            value=measure,
            factors=measured.factors,
            block=SEED,
            max_order=min(config.max_order, len(measured.factors)),
            seed=config.seed,
        )
        for measure in measured.measures
    }
    tables = [
        _hypotheses(config, measured),
        _means(measured, list(measured.measures)),
        _effects(measured, contrasts),
        _seeds(config, measured, contrasts),
        _variance(config, measured),
        _counts(measured),
        _left_out(measured),
        replace(_means(measured, list(measured.of_shifts)), name="shifts", is_long=True),
    ]
    return [table for table in tables if not table.frame.empty]


def write_tables(tables: Sequence[Table], out: str) -> list[str]:
    """Write every table as CSV, Markdown and LaTeX into a folder; return the paths.

    Raises:
        StorageError: the storage refused.
    """
    folder, paths = Folder(out), []
    for table in tables:
        texts = {"csv": TextTable(table.frame).csv(), "md": table.markdown(), "tex": table.latex()}
        for ending, text in texts.items():
            folder.write(f"{table.name}.{ending}", text.encode())
            paths.append(f"{out.rstrip('/')}/{table.name}.{ending}")
    return paths


def _means(measured: TidyResults, measures: Sequence[str]) -> Table:
    rows = []
    for measure in measures:
        for arm, group in _arms(measured):
            values, found = group[measure], summarise(group[measure])
            if measure in measured.of_shifts and not found.n:
                continue  # not planned for this arm, or nowhere complete
            interval = t_interval(values)
            rows.append(
                {"measure": measure}
                | _head_factors(arm)
                | {
                    "mean": found.mean,
                    "sd": found.sd,
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                    "n": found.n,
                }
            )
    caption = (
        "Mean and standard deviation (ddof 1) over n seeds; low to high: 95 % t interval over seeds, from "
        f"{MIN_REPLICATES} on."
    )
    return Table("means", caption, pd.DataFrame(rows), 1 + len(measured.factors))


def _arms(measured: TidyResults) -> list[tuple[dict[str, str], pd.DataFrame]]:
    factors = list(measured.factors)
    groups = measured.trials.groupby(factors, sort=False)
    named = [(dict(zip(factors, map(str, key), strict=True)), group) for key, group in groups]
    return sorted(named, key=lambda pair: [measured.factors[name].index(pair[0][name]) for name in factors])


def _head_factors(arm: Mapping[str, str]) -> dict[str, str]:
    """Return an arm's levels under the headings of its factors, which no other column of a table has."""
    return {f"{name} (factor)" if name in _TAKEN else name: level for name, level in arm.items()}


def _effects(measured: TidyResults, contrasts: dict[str, list[Contrast]]) -> Table:
    rows = []
    for measure, found in contrasts.items():
        for each in found:
            interval = each.interval
            row: dict[str, Any] = {"measure": measure, "effect": _name(each), "difference": each.estimate}
            row |= {"low": interval.low if interval else None, "high": interval.high if interval else None}
            row |= {"p": each.p_value, "p Holm": each.p_holm, "seeds": each.num_blocks, "cells": each.num_cells}
            row |= {"missing": _count_planned(measured, each) - each.num_cells}
            if measured.of_shifts:
                row["shifts in that direction"] = _count_shifts(measured, measure, each)
            rows.append(row)
    caption = (
        "Main effects (level − reference) and interactions (differences of differences), everything else and the seed "
        f"being equal; a seed's difference is the mean over its cells. low to high: 95 % t interval over seeds, from "
        f"{MIN_REPLICATES} on; p: two-sided sign flips of whole seeds, from {min_units()} on. Holm: corrected over all "
        "effects on one measure. missing: planned cells (other factors and seed) without a value on both sides."
    )
    if measured.of_shifts:
        caption += " Shifts in that direction: a count for these results, nothing is tested over kinds of shift."
    return Table("effects", caption, pd.DataFrame(rows), 2)


def _name(contrast: Contrast) -> str:
    parts = zip(contrast.factors, contrast.levels, contrast.references, strict=True)
    return " × ".join(f"{factor}: {level} − {reference}" for factor, level, reference in parts)


def _count_planned(measured: TidyResults, contrast: Contrast) -> int:
    """Return the number of cells that a contrast is planned in: all corners are arms of the table, with every seed."""
    others = [name for name in measured.factors if name not in contrast.factors]
    corners = dict(zip(contrast.factors, zip(contrast.references, contrast.levels, strict=True), strict=True))
    arms = measured.trials[list(measured.factors)].drop_duplicates()
    for factor, labels in corners.items():
        arms = arms[arms[factor].isin(labels)]
    sizes = arms.groupby(others).size() if others else pd.Series([len(arms)])
    return int((sizes == 2 ** len(corners)).sum()) * measured.trials[SEED].nunique()


def _count_shifts(measured: TidyResults, measure: str, contrast: Contrast) -> str | None:
    """Return how many kinds of shift differ in the direction of a main effect on a mean over shifts, as "7 of 8".

    Over the cells in which both means are defined; None for other effects.
    """
    metric = measured.measures[measure]
    if len(contrast.factors) > 1 or measure != f"robustness/mean_{metric}" or contrast.estimate is None:
        return None
    names = [name for name, of in measured.of_shifts.items() if of == metric]
    (factor,), (level,), (reference,) = contrast.factors, contrast.levels, contrast.references
    others = [name for name in measured.factors if name != factor]
    wide = measured.trials.set_index([factor, *others, SEED])[[measure, *names]]
    differences = pd.DataFrame(wide.xs(level, level=factor) - wide.xs(reference, level=factor))
    # A shift that is planned for other arms only has no value.
    per_shift = differences.dropna(subset=[measure])[names].mean().dropna()
    signed = drop_rounding(per_shift, np.nanmax(np.abs(wide.to_numpy(dtype=np.float64)))) * contrast.estimate
    return f"{int((signed > 0).sum())} of {len(signed)}"


def _seeds(config: StatsConfig, measured: TidyResults, contrasts: dict[str, list[Contrast]]) -> Table:
    """Return the table of seeds needed to find the smallest effect that matters, for measures that have one."""
    rows = []
    for measure, found in contrasts.items():
        smallest = config.metrics[measured.measures[measure]].smallest_effect
        for each in found if smallest is not None else ():
            if each.sd:
                rows.append({"measure": measure, "effect": _name(each), **_plan(config, each, smallest, len(found))})
    caption = (
        f"Seeds that a two-sided {config.test} test needs to find the smallest effect that matters with a power of "
        f"{config.power:g} at alpha = {config.alpha:g}, if differences are normal with the sd found here; if the sd is "
        "at the upper end of its one-sided 80 % confidence interval (a pilot's sd is uncertain); and at alpha divided "
        "by the number of effects, Holm's worst case."
    )
    return Table("seeds", caption, pd.DataFrame(rows), 2)


def _plan(config: StatsConfig, contrast: Contrast, smallest: float | None, family: int) -> dict[str, Any]:
    assert contrast.sd is not None
    assert smallest is not None
    sd, number = contrast.sd, contrast.num_blocks
    cautious = upper_sd(sd, number)

    def needed(sd: float, alpha: float) -> int | None:
        return minimum_replicates(smallest, sd, power=config.power, alpha=alpha, test=config.test)

    return {
        "smallest effect": smallest,
        "sd": sd,
        "seeds": number,
        "power now": compute_power(smallest, sd, number, alpha=config.alpha, test=config.test),
        "needed": needed(sd, config.alpha),
        "needed, cautious sd": needed(cautious, config.alpha),
        "needed, Holm": needed(sd, config.alpha / family),
    }


def _variance(config: StatsConfig, measured: TidyResults) -> Table:
    rows: list[dict[str, Any]] = []
    for measure in measured.measures:
        if measured.trials[measure].notna().sum() < 2:
            continue
        found = decompose_variance(
            measured.trials, value=measure, factors=list(measured.factors), block=SEED, max_order=config.max_order
        )
        for term in found.terms:
            name = " × ".join("seed" if factor == SEED else factor for factor in term.factors)
            row = {"measure": measure, "source": name or "left: seed × arm, noise", "df": term.df}
            row |= {
                "sum of squares": term.sum_of_squares,
                "share": term.eta_squared,
                "omega squared": term.omega_squared,
            }
            rows.append(row | {"F": term.f, "p": term.p_value})
        if found.num_missing and abs(found.overlap) > 1e-12:
            rows.append({"measure": measure, "source": "shared by several (missing cells)", "share": found.overlap})
    caption = (
        "What the spread is made of: share of the total sum of squares (eta squared), and omega squared, the "
        "same without what chance alone gives. Least squares, type III; F against what is left. p is not corrected, "
        f"and there is none for fewer than {MIN_REPLICATES} seeds."
    )
    frame = pd.DataFrame(rows, columns=None if rows else ["df"])
    return Table("variance", caption, frame.astype({"df": "Int64"}), 2)


def _counts(measured: TidyResults) -> Table:
    rows = [
        _head_factors(each.arm)
        | {"seeds": each.num_seeds, "planned": each.num_planned, "evaluations": each.num_present}
        | {"missing": each.num_planned - each.num_present, "undefined": each.num_undefined}
        for each in measured.counts
    ]
    caption = (
        "What is there and what is not: planned are all seeds with all evaluations (shift and severity) of the table; "
        "missing are those without a row, undefined those in which a metric is empty. Neither enters a mean, and a "
        "mean over shifts of which one is missing is not taken."
    )
    return Table("counts", caption, pd.DataFrame(rows), len(measured.factors))


def _left_out(measured: TidyResults) -> Table:
    rows = [
        {"metric": each.metric}
        | _head_factors(each.within)
        | {"shift": each.shift or "not shifted"}
        | {"empty at severity": ", ".join(f"{severity:g}" for severity in each.severities)}
        for each in measured.left_out
    ]
    caption = "Shifts that are in no mean of a metric, for any arm: at these severities it is empty in every row."
    return Table("left_out", caption, pd.DataFrame(rows), 3 + len(measured.left_out[0].within if rows else ()))


def _hypotheses(config: StatsConfig, measured: TidyResults) -> Table:
    caption = (
        "Verdicts. Nothing is known here of when a hypothesis was written: one that was written after the results were "
        "seen is exploratory."
    )
    if not config.hypotheses:
        return Table("hypotheses", caption, pd.DataFrame(), 4)
    found = []
    for hypothesis in config.hypotheses:
        posed, results = measured.pose(hypothesis, config.seed)
        found.append(assess(posed, Measured(results)))
    corrected = _correct(config.hypotheses, [Corrected(each.p_value, each.p_size) for each in found])
    best = _correct(config.hypotheses, [Corrected(each.smallest_p) for each in found])
    rows = []
    for hypothesis, evidence, p_values, best_p in zip(config.hypotheses, found, corrected, best, strict=True):
        verdict, reason = decide(hypothesis, evidence, p_values, best_p.claim)
        interval = evidence.interval
        row: dict[str, Any] = {"name": hypothesis.name, "verdict": verdict, "reason": reason}
        row |= {"compared": describe_comparison(hypothesis), "measure": hypothesis.metric, "effect": evidence.effect}
        row |= {"low": interval.low if interval else None, "high": interval.high if interval else None}
        row |= {"p": evidence.p_value, "p Holm": p_values.claim, "p of size, Holm": p_values.size}
        row |= {"over": evidence.units, "missing": evidence.num_missing}
        rows.append(row)
    return Table("hypotheses", caption, pd.DataFrame(rows), 5)


def _correct(hypotheses: Sequence[Hypothesis], p_values: Sequence[Corrected]) -> list[Corrected]:
    """Return p-values, Holm-corrected within each family: all hypotheses count as written before the results."""
    about = [(each, Registered(describe_hypothesis(each), PREREGISTERED, 0, 0)) for each in hypotheses]
    return correct(p_values, about, [])

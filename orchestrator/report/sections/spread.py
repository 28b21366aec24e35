"""Report section: sources of the spread of the mean shifted score, and replicates needed to detect a difference."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.wording import plural
from orchestrator.report.page import Cell, Column, Section, note, table
from orchestrator.statistics.factorial import Term, VarianceTable, decompose_variance
from orchestrator.statistics.intervals import MIN_REPLICATES
from orchestrator.statistics.power import minimum_replicates, upper_sd

#: Most blocks (replicates) in the analysis of variance; hundreds take seconds, and shares from 30 are as good.
MAX_BLOCKS = 30

#: Differences between two arms that may matter, in [0, 1].
EFFECTS = (0.005, 0.01, 0.02, 0.05)

_BLOCK = "replicate"


def spread_section(results: Results) -> Section | None:
    """Return the section with analysis of variance and minimum replicates, None with one arm or one replicate.

    None, too, if arms have different test images.
    """
    if results.tested_on:
        return None
    variance, power = _variance(results), _power(results)
    if variance is None and power is None:
        return None
    return Section("spread", "Spread", "What is the spread made of?", (variance or "") + (power or ""))


def _variance(results: Results) -> str | None:
    measure, factors = f"robustness/mean_{results.metric}", results.factors
    columns = [f"arm/{factor}" for factor in factors]
    rows = results.complete
    if measure not in rows or not factors or "search" in results.plan:  # arms of a search are no grid
        return None
    rows = rows.dropna(subset=[measure, *columns])
    rows = rows[rows[_BLOCK] < MAX_BLOCKS]
    if rows[_BLOCK].nunique() < 2 or rows["name"].nunique() < 2 or np.ptp(rows[measure].to_numpy(dtype=float)) == 0:
        return None
    found = decompose_variance(rows, value=measure, factors=columns, block=_BLOCK)
    body = [
        Column("source of spread"),
        Column("degrees of freedom", is_number=True),
        Column("share of the spread, %", is_number=True),
    ]
    # An F test takes every replicate for an independent one.
    is_shared = len(set((units := results.group_replicates(rows)).values())) < len(units)
    has_p = not is_shared and any(term.p_value is not None for term in found.terms)
    body += [Column("p", is_number=True)] * has_p
    ordered = sorted(found.terms, key=lambda term: -term.eta_squared)
    some = f" Of the first {MAX_BLOCKS} replicates." if results.complete[_BLOCK].max() >= MAX_BLOCKS else ""
    text = (
        f"Analysis of variance of the mean shifted {TITLES[results.metric]} with the replicate as block (n = "
        f"{found.num_values} trials): the share of the sum of squares (η²) that belongs to each choice, to two choices "
        f"together, to the seed, and to nothing of these.{some}{_missing(found)}"
    )
    if is_shared:
        text += " No p: replicates share pretrained encoders, and are not independent."
    else:
        text += " p: F test against what is left." if has_p else f" A p-value takes {MIN_REPLICATES} replicates."
    return note(text) + table(body, [_term_row(term, has_p=has_p) for term in ordered])


def _missing(found: VarianceTable) -> str:
    if not found.num_missing:
        return ""
    return (
        f" {plural(found.num_missing, 'cell')} missing, so the terms overlap by {100 * found.overlap:.1f} % of the "
        "spread, which belongs to none alone."
    )


def _term_row(term: Term, *, has_p: bool) -> list[Cell]:
    names = [name.removeprefix("arm/") for name in term.factors]
    said = " × ".join(names) if names else "what is left: arm × seed, and noise"
    said = "seed (replicate)" if names == [_BLOCK] else said
    p = Cell("–", "") if term.p_value is None else Cell(f"{term.p_value:.2g}", term.p_value)
    share = Cell(f"{100 * term.eta_squared:.1f}", term.eta_squared)
    return [Cell(escape(said)), Cell(str(term.df), term.df), share, *([p] if has_p else [])]


def _power(results: Results) -> str | None:
    """Return the table of replicates needed, from the spread of paired differences against the first arm."""
    measure = f"robustness/mean_{results.metric}"
    if measure not in results.complete:
        return None
    scores = results.complete.pivot(index="name", columns=_BLOCK, values=measure)
    first = results.trials["name"].iloc[0]
    if first not in scores.index or len(scores) < 2:
        return None
    differences = scores.drop(index=first) - scores.loc[first]
    freedom = (differences.count(axis=1) - 1).clip(lower=0)
    total = int(freedom.sum())
    sd = math.sqrt(float((differences.var(axis=1, ddof=1) * freedom).sum()) / total) if total else 0.0
    if sd == 0:
        return None
    cautious = upper_sd(sd, total + 1)
    columns = [Column("difference between two arms, points", is_number=True)]
    columns += [Column("replicates it takes", is_number=True), Column("to be careful", is_number=True)]
    rows = [
        [Cell(f"{100 * effect:g}", effect), *(_number(minimum_replicates(effect, each)) for each in (sd, cautious))]
        for effect in EFFECTS
    ]
    text = (
        "Replicates per arm for a paired t-test of two arms to find a true difference 4 times in 5 (two-sided, α = "
        f".05, one comparison; more after Holm). Paired differences have a standard deviation of {100 * sd:.2f} points "
        f"(pooled over {len(differences)} arms against the first, {total} degrees of freedom); careful: at its "
        f"upper 80 % bound, {100 * cautious:.2f}."
    )
    return "<h3>How many replicates does it take?</h3>" + note(text) + table(columns, rows)


def _number(replicates: int | None) -> Cell:
    return Cell("&gt; 10,000", 10_001) if replicates is None else Cell(f"{replicates:,}", replicates)

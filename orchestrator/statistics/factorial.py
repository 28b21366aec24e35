"""Main effects, interactions and variance decomposition for any number of factors, with the replicate as block.

The tables have one row per arm and block: a column per factor, one for the block (the replicate: a seed that all arms
share) and one for the value. Rows without a defined value are left out and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.statistics.intervals import MIN_REPLICATES, Array, Interval, drop_rounding, summarise, t_interval
from orchestrator.statistics.paired_tests import holm, permutation_test


@dataclass(frozen=True)
class Contrast:
    """A main effect (of one factor, level minus reference) or an interaction (the difference of such differences)."""

    factors: tuple[str, ...]
    levels: tuple[Any, ...]
    references: tuple[Any, ...]
    #: Mean over blocks of their means over cells; None if no cell is complete.
    estimate: float | None
    #: Sample standard deviation of the block means; None with fewer than two blocks.
    sd: float | None
    #: t interval of the mean over blocks; None for fewer than ``MIN_REPLICATES``.
    interval: Interval | None
    #: p-value of the two-sided sign-flip test of the block means; None for fewer than 6 other than 0.
    p_value: float | None
    #: p-value after Holm's correction over all contrasts computed together.
    p_holm: float | None
    #: Number of cells (combinations of the other factors' levels and the block) in which all corners are defined.
    num_cells: int
    num_blocks: int
    #: Number of cells in which some corners are defined and others are not.
    num_missing: int


@dataclass(frozen=True)
class Term:
    """One row of an analysis of variance."""

    #: Names of the factors, name of the block, or () for the residual: block × arm and noise.
    factors: tuple[str, ...]
    df: int
    sum_of_squares: float
    #: Share of the total sum of squares, in [0, 1] (η²).
    eta_squared: float
    #: The same share without the part that chance alone gives (ω²); may be slightly below 0. None for the residual.
    omega_squared: float | None = None
    f: float | None = None
    #: None, too, for fewer than ``MIN_REPLICATES`` blocks.
    p_value: float | None = None


@dataclass(frozen=True)
class VarianceTable:
    """Share of the variance that each term accounts for."""

    #: Block first, then main effects, interactions by order, and the residual.
    terms: tuple[Term, ...]
    num_values: int
    #: Number of combinations of levels and block without a defined value.
    num_missing: int
    #: Interactions that are not part of the model, because some combination of their levels has no value at all.
    left_out: tuple[tuple[str, ...], ...]
    #: η² that belongs to no term alone, because cells are missing; 0 for a complete table, may be below 0.
    overlap: float


def compute_contrasts(
    frame: pd.DataFrame,
    *,
    value: str,
    factors: Mapping[str, Sequence[Any]],
    block: str,
    max_order: int = 2,
    seed: int = 0,
) -> list[Contrast]:
    """Return every main effect against its factor's first level and every interaction up to ``max_order`` factors.

    Marginal means are over common cells: a combination of the other factors' levels and the block enters where all its
    corners have a value. Every such cell of a block weighs the same, and so does every block.

    Args:
        frame: table with one row per arm and block.
        value: column of the numbers.
        factors: column → levels, the reference first.
        block: column of the replicate.
        max_order: highest number of factors in an interaction; 1 for main effects only.
        seed: seed of random sign flips.

    Raises:
        ValueError: if an arm has two rows in one block.

    Source: Box, Hunter & Hunter 2005, chapter 5 (effects as differences, interactions as differences of differences).
    """
    _check_unique(frame, [*factors, block])
    cells = frame.set_index([*factors, block])[value].dropna().astype(float)
    contrasts = []
    for order in range(1, max_order + 1):
        for chosen in itertools.combinations(factors, order):
            table = cells.unstack(list(chosen))
            references = tuple(factors[name][0] for name in chosen)
            for levels in itertools.product(*(factors[name][1:] for name in chosen)):
                contrast = Contrast(chosen, levels, references, None, None, None, None, None, 0, 0, 0)
                contrasts.append(_measure(contrast, table, block, seed=seed))
    corrected = holm([contrast.p_value for contrast in contrasts])
    return [replace(contrast, p_holm=p) for contrast, p in zip(contrasts, corrected, strict=True)]


def _measure(contrast: Contrast, table: pd.DataFrame, block: str, *, seed: int) -> Contrast:
    """Return the contrast with its estimate; ``table`` has a row per cell and a column per corner."""
    order = len(contrast.levels)
    total, num_defined = np.zeros(len(table)), np.zeros(len(table), dtype=int)
    for corner in itertools.product((0, 1), repeat=order):
        pairs = zip(contrast.references, contrast.levels, strict=True)
        key = tuple(pair[which] for pair, which in zip(pairs, corner, strict=True))
        column = key if order > 1 else key[0]
        values = table[column].to_numpy() if column in table else np.full(len(table), np.nan)
        total += (-1) ** (order - sum(corner)) * values
        num_defined += ~np.isnan(values)
    blocks = table.index.get_level_values(block).to_numpy()
    keep = ~np.isnan(total)
    means = pd.Series(total[keep]).groupby(blocks[keep]).mean().to_numpy()
    means = drop_rounding(means, np.fmax.reduce(np.abs(table.to_numpy(dtype=float)), axis=None, initial=0.0))
    return replace(
        contrast,
        estimate=float(means.mean()) if len(means) else None,
        sd=summarise(means).sd,
        interval=t_interval(means),
        p_value=permutation_test(means, seed=seed),
        num_cells=int(keep.sum()),
        num_blocks=len(means),
        num_missing=int(((num_defined > 0) & ~keep).sum()),
    )


def decompose_variance(
    frame: pd.DataFrame, *, value: str, factors: Sequence[str], block: str, max_order: int = 2
) -> VarianceTable:
    """Return the variance of ``value`` divided among the block, the factors, their interactions and the residual.

    Least squares with sum-to-zero coding; the sum of squares of a term is what the model loses without it (type III),
    which for a complete table is that of the textbook and adds up to the total. Where cells are missing the terms
    overlap, and the table holds the amount. F tests are against the residual, that is block × arm and noise together;
    they assume that the residual is normal and equally large in every cell, and have a p-value from ``MIN_REPLICATES``
    blocks on. A factor that another one determines has
    fewer degrees of freedom, down to 0.

    Args:
        frame: table with one row per arm and block.
        value: column of the numbers.
        factors: columns of the factors; one with a single level is left out.
        block: column of the replicate, which the tables of the report call "seed".
        max_order: highest number of factors in an interaction.

    Raises:
        ValueError: if an arm has two rows in one block, or no value is defined.

    Source: Yates 1934 (type III as weighted squares of means); Hays 1963 and Olejnik & Algina 2003 (ω²).
    """
    _check_unique(frame, [*factors, block])
    rows = frame.dropna(subset=[value])
    if rows.empty:
        raise ValueError(f"asked for the variance of {value!r}, of which no value is defined")
    factors = [name for name in factors if rows[name].nunique() > 1]
    y = rows[value].to_numpy(dtype=float)
    interactions = [term for order in range(2, max_order + 1) for term in itertools.combinations(factors, order)]
    full = [term for term in interactions if _is_crossed(rows, term)]
    coded = {name: _sum_code(rows[name]) for name in [block, *factors]}
    terms = {term: _product([coded[name] for name in term]) for term in [(block,), *((n,) for n in factors), *full]}
    num_planned = rows[block].nunique() * int(np.prod([rows[name].nunique() for name in factors], dtype=int))
    total = float(((y - y.mean()) ** 2).sum())
    table = _fit(y, terms, total)
    if rows[block].nunique() < MIN_REPLICATES:
        table = tuple(replace(term, p_value=None) for term in table)
    return VarianceTable(
        terms=table,
        num_values=len(y),
        num_missing=num_planned - len(y),
        left_out=tuple(term for term in interactions if term not in full),
        overlap=1.0 - sum(term.eta_squared for term in table) if total else 0.0,
    )


def _fit(y: Array, terms: Mapping[tuple[str, ...], Array], total: float) -> tuple[Term, ...]:
    def residual(columns: Sequence[Array]) -> tuple[float, int]:
        design = np.column_stack([np.ones(len(y)), *columns])
        solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
        return float(((y - design @ solution) ** 2).sum()), int(rank)

    left, rank = residual(list(terms.values()))
    num_left = len(y) - rank
    error = left / num_left if num_left and left > 1e-20 * max(total, float(y @ y)) else None
    rows = []
    for name in terms:
        without, smaller = residual([columns for other, columns in terms.items() if other != name])
        df, squares = rank - smaller, max(0.0, without - left)
        rows.append(_test(Term(name, df, squares, squares / total if total else 0.0), error, num_left, total))
    return (*rows, Term((), num_left, left, left / total if total else 0.0))


def _test(term: Term, error: float | None, num_left: int, total: float) -> Term:
    """Return the term with ω², F and p, unchanged if it has no degrees of freedom or ``error`` is None."""
    if error is None or not term.df:
        return term
    from scipy.special import fdtrc  # the tail of F; importing scipy.stats takes half a second

    statistic = term.sum_of_squares / term.df / error
    omega = (term.sum_of_squares - term.df * error) / (total + error)
    return replace(term, omega_squared=omega, f=statistic, p_value=float(fdtrc(term.df, num_left, statistic)))


def _sum_code(labels: pd.Series) -> Array:
    """Return one column per level but the last: 1 in its rows, −1 in those of the last level."""
    codes, levels = pd.factorize(labels)
    one_hot = np.eye(len(levels))[codes]
    return one_hot[:, :-1] - one_hot[:, -1:]


def _product(codings: Sequence[Array]) -> Array:
    product = codings[0]
    for coding in codings[1:]:
        product = (product[:, :, None] * coding[:, None, :]).reshape(len(product), -1)
    return product


def _is_crossed(rows: pd.DataFrame, term: Sequence[str]) -> bool:
    """Return whether every combination of levels of the term's factors has a value."""
    return len(rows[list(term)].drop_duplicates()) == np.prod([rows[name].nunique() for name in term])


def _check_unique(frame: pd.DataFrame, keys: Sequence[str]) -> None:
    twice = frame[frame.duplicated(list(keys))]
    if len(twice):
        found = ", ".join(f"{key}={twice.iloc[0][key]}" for key in keys)
        raise ValueError(f"found two rows of {found}; give one row per arm and block")

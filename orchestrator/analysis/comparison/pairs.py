"""Differences between arms of two studies: paired over replicates where they share images and seeds, else described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from orchestrator.analysis.comparison.sides import MEASURES, Arm, Side
from orchestrator.analysis.wording import plural
from orchestrator.planning.ceteris_paribus import find_other_differences, read_settings
from orchestrator.statistics.intervals import MIN_REPLICATES, Interval, drop_rounding, t_interval
from orchestrator.statistics.paired_tests import holm, min_units, permutation_test
from orchestrator.study.contrasts import find_units, name_unit
from orchestrator.study.grid import Grid
from trainables.errors import StudyError


@dataclass(frozen=True)
class Difference:
    """Second arm minus first arm on one of ``MEASURES``."""

    #: Paired: mean over units. Unpaired: difference of the arms' means. None without a value on either side.
    mean: float | None
    #: t interval over units; None for fewer than ``MIN_REPLICATES``, and where nothing is paired.
    interval: Interval | None = None
    #: Exact two-sided sign-flip test over units, which takes 6; ``p_holm``: corrected over all pairs on this measure.
    p_value: float | None = None
    p_holm: float | None = None
    num_units: int = 0
    #: Units whose difference is not 0; the others tell a test nothing.
    num_changed: int = 0


@dataclass(frozen=True)
class Pair:
    """An arm of one study against an arm of another."""

    first: Arm
    second: Arm
    #: Why nothing is paired; None if replicates are.
    unpaired: str | None
    #: Replicates with the same images in the same sets and the same seed on both sides.
    replicates: tuple[int, ...]
    #: What a unit is called: a replicate, or a pretrained encoder that replicates share.
    unit: str
    #: Measure → difference.
    differences: Mapping[str, Difference]
    #: Fields in which the configurations of the two arms differ, in words.
    settings: tuple[str, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Phrases that have to be said of the pretraining of its arms."""
        return tuple(dict.fromkeys(self.first.remarks + self.second.remarks))

    def describe_units(self, measure: str) -> str:
        """Return what the difference on a measure is over, and why it has no interval or no p if it has none."""
        if self.unpaired is not None:
            return f"not paired: {self.unpaired}"
        difference = self.differences[measure]
        number = difference.num_units
        lacks = f": at least {MIN_REPLICATES} for an interval" if number < MIN_REPLICATES else ""
        if difference.p_value is None and number >= min_units():
            lacks = f", {difference.num_changed} with a difference: at least {min_units()} for a test"
        return plural(number, self.unit) + lacks


def compute_pairs(sides: Sequence[Side], trials: pd.DataFrame, named: Sequence[tuple[str, str]] = ()) -> list[Pair]:
    """Return the pairs of arms of different studies: those with the same label or levels, and those named.

    Args:
        sides: sides of the comparison, in order; a difference is that of the later side minus the earlier one, and of
            a named pair the second arm minus the first.
        trials: ``trials_table`` of the sides.
        named: arms as "study · arm", or as "arm" if only one study has it (of two studies, the first arm is looked
            up in the first and the second in the second).

    Raises:
        StudyError: a named arm does not exist, is in several studies, or both are of one study.
    """
    chosen: dict[tuple[str, str], tuple[Arm, Arm]] = {}
    for first, second in combinations(sides, 2):
        for arm in first.arms:
            # Label first: a factor that one study alone varies, or holds fixed, is in the levels of that study only.
            alike = [each for each in second.arms if each.short == arm.short]
            alike = alike or [each for each in second.arms if each.levels == arm.levels]
            chosen |= {(arm.label, each.label): (arm, each) for each in alike}
    for one, other in named:
        of_two = len(sides) == 2
        found = _find_arm(one, sides[:1] if of_two else sides), _find_arm(other, sides[1:] if of_two else sides)
        if found[0].side is found[1].side:
            raise StudyError(
                f"--pair: found {one!r} and {other!r}, both of {found[0].side.label}, whose own report compares them; "
                "name arms of two studies"
            )
        chosen[found[0].label, found[1].label] = found
    have = set(trials["name"])
    pairs = [_compare(first, second, trials) for key, (first, second) in chosen.items() if have.issuperset(key)]
    return _correct(pairs)


def _find_arm(what: str, sides: Sequence[Side]) -> Arm:
    arms = [arm for side in sides for arm in side.arms]
    found = [arm for arm in arms if what == arm.label]
    found = found or [arm for arm in arms if what in (arm.short, arm.name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(repr(arm.label) for arm in found)
        raise StudyError(f"--pair: found {what!r} in several studies; expected one of {listed}")
    listed = "; ".join(arm.label for arm in arms[:_MAX_LISTED])
    more = f"; and {len(arms) - _MAX_LISTED} more" if len(arms) > _MAX_LISTED else ""
    raise StudyError(f"--pair: looked for the arm {what!r} and found {listed}{more}; name one of them")


#: Most arms that a message lists.
_MAX_LISTED = 24


def _compare(first: Arm, second: Arm, trials: pd.DataFrame) -> Pair:
    """Return the pair of two arms, both with complete trials."""
    rows = [trials[trials["name"] == arm.label].set_index("replicate") for arm in (first, second)]
    settings = _find_settings([first, second], rows)
    replicates, unpaired = _match(*rows)
    if unpaired is not None:
        means = {measure: [side[measure].mean() for side in rows] for measure in MEASURES}
        described = {m: Difference(None if np.isnan(a - b) else float(b - a)) for m, (a, b) in means.items()}
        return Pair(first, second, unpaired, (), "replicate", described, settings)
    matched = [side.loc[replicates] for side in rows]
    needs = [
        first.side.results.needs[one] | second.side.results.needs[other]
        for one, other in zip(matched[0]["signature"], matched[1]["signature"], strict=True)
    ]
    seed = int(first.side.results.plan["seed"])
    differences = {
        measure: _measure(
            matched[0][measure].to_numpy(dtype=np.float64),
            matched[1][measure].to_numpy(dtype=np.float64),
            find_units(needs),
            seed=seed,
        )
        for measure in MEASURES
    }
    return Pair(first, second, None, tuple(map(int, replicates)), name_unit(needs), differences, settings)


def _match(first: pd.DataFrame, second: pd.DataFrame) -> tuple[list[int], str | None]:
    """Return the replicates that two arms share, and why there are none.

    The fingerprint covers the images, their size and which set each is in. The seed of a trial follows from the
    study's seed and the number of the replicate.
    """
    both = first.index.intersection(second.index, sort=False)
    if both.empty:
        return [], "no replicate is complete in both"
    one, other = first.loc[both], second.loc[both]
    same_data, same_seed = (one[column] == other[column] for column in ("data_fingerprint", "seed"))
    if not same_data.any():
        return [], "different images, or another split or size of them"
    if not (same_data & same_seed).any():
        return [], "different seeds"
    same_trial = one["signature"] == other["signature"]
    if same_trial.any():
        return [], f"the same trials ({same_trial.sum()} of {len(both)} replicates), so that nothing differs"
    return list(both[same_data & same_seed]), None


def _measure(first: np.ndarray, second: np.ndarray, units: Sequence[int], *, seed: int) -> Difference:
    """Return the paired difference of the values of replicates, second minus first."""
    scale = float(np.fmax.reduce(np.abs([first, second]), axis=None, initial=0.0))
    by_replicate = pd.Series(drop_rounding(second - first, scale)).dropna()
    by_unit = by_replicate.groupby(np.array(units)[by_replicate.index]).mean()
    differences = drop_rounding(by_unit.to_numpy(), scale)
    if not len(differences):
        return Difference(None)
    return Difference(
        mean=float(differences.mean()),
        interval=t_interval(differences),
        p_value=permutation_test(differences, seed=seed),
        num_units=len(differences),
        num_changed=int(np.count_nonzero(differences)),
    )


def _find_settings(arms: Sequence[Arm], rows: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    """Return the fields in which the configurations of two arms differ, but for the replicate's own numbers."""
    configs = [
        arm.side.results.records[of_arm["signature"].iloc[0]].config["config"]
        for arm, of_arm in zip(arms, rows, strict=True)
    ]
    own = {"replicate", "encoder", "earlier_encoders"}
    configs = [{name: value for name, value in config.items() if name not in own} for config in configs]
    tuned = [field for arm in arms for field in arm.side.results.plan.get("tuning", {}).get("space", ())]
    labels = [arm.side.label for arm in arms]
    nothing = Grid(base=(), factors={}, conditions=(), exclude=(), is_complete=True)
    found = read_settings([{"study": label} for label in labels], configs, nothing, tuned=tuned)
    return tuple(each.describe() for each in find_other_differences({(): ((0,), (1,))}, labels, found))


def _correct(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with their p-values corrected after Holm over all pairs on a measure."""
    corrected = {measure: holm([pair.differences[measure].p_value for pair in pairs]) for measure in MEASURES}
    return [
        replace(
            pair,
            differences={m: replace(each, p_holm=corrected[m][number]) for m, each in pair.differences.items()},
        )
        for number, pair in enumerate(pairs)
    ]


def pairs_table(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return one row per pair and measure: the arms, the difference with its interval and test, what it is over."""
    rows = [
        {
            "first": pair.first.label,
            "second": pair.second.label,
            "measure": measure,
            "difference": each.mean,
            "low": each.interval.low if each.interval else None,
            "high": each.interval.high if each.interval else None,
            "p_sign_flip": each.p_value,
            "p_holm": each.p_holm,
            "over": pair.describe_units(measure),
            "replicates": " ".join(map(str, pair.replicates)),
            "settings_that_differ": "; ".join(pair.settings),
            "remarks": "; ".join(pair.remarks),
        }
        for pair in pairs
        for measure, each in pair.differences.items()
    ]
    columns = ["first", "second", "measure", "difference", "low", "high", "p_sign_flip", "p_holm", "over"]
    table = pd.DataFrame(rows, columns=[*columns, "replicates", "settings_that_differ", "remarks"])
    return table.astype(dict.fromkeys(columns[3:8], float))

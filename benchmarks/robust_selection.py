"""Choosing the arm on shifted validation images: what it wins back under a family of shifts that did not choose.

    python benchmarks/robust_selection.py configs/quickstart.yaml --storage results   # runs the study, or continues it
    python benchmarks/robust_selection.py configs/pneumonia.yaml --storage results --set data.path=…

The study runs once, with all its shifts on validation images too. Then, for each family: the arm is chosen by the mean
over the validation images under the *other* families (means over severities, then over types), by unshifted validation,
and in hindsight by the test images under the family itself; all three are judged by the test images under the family.
*Given up* is what unshifted validation lies below the best arm in hindsight, *won back* what the choice under the other
families is better than that. Both are given for arms compared by their means over all replicates, and on average over
choices from a single replicate, as in a study without more, judged by the same means over all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import ROOT, Line, environment

from orchestrator.analysis.results import Results, load_results
from orchestrator.analysis.tables.evaluations import type_means_table
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import load_study

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("gaussian_blur", "defocus_blur", "motion_blur"),
    "tone": (
        "brightness_up", "brightness_down", "contrast_up", "contrast_down", "gamma_up", "gamma_down", "saturation",
    ),
    "resolution": ("jpeg", "pixelate"),
}  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """Mean score, in [0, 1], under a family on the test images, of the arms that were chosen in three ways."""

    family: str
    clean: float
    shifted: float
    best: float
    #: Labels of the chosen arms, where there is one choice.
    arms: tuple[str, str, str] | None = None

    @property
    def given_up(self) -> float:
        """What choosing on unshifted validation loses."""
        return self.best - self.clean

    @property
    def won_back(self) -> float:
        """What choosing under the other families wins; below 0 it loses more."""
        return self.shifted - self.clean


def choose(family: str, clean: pd.Series, validation: pd.DataFrame, test: pd.DataFrame) -> Choices:
    """Return the choices for one family that is left out.

    Args:
        family: name in ``FAMILIES``.
        clean: arm → score on unshifted validation.
        validation: arm × type of shift → score on validation images.
        test: arm × type of shift → score on test images, by which the choices are judged.
    """
    kinds = [kind for kind in test if kind in FAMILIES[family]]
    others = [kind for own in FAMILIES if own != family for kind in validation if kind in FAMILIES[own]]
    judge = test[kinds].mean(axis=1)
    arms = (clean.idxmax(), validation[others].mean(axis=1).idxmax(), judge.idxmax())
    return Choices(family, *(float(judge[arm]) for arm in arms), arms=tuple(map(str, arms)))


def choose_everywhere(results: Results) -> tuple[list[Choices], list[Choices]]:
    """Return the choices for each family from the means over replicates, and on average from single replicates."""
    trials = results.complete.set_index("signature")
    arm = trials["name"].map(results.labels)
    clean = trials[f"val/{results.metric}"]
    validation, test = (
        type_means_table(results.shifts[results.shifts["set"] == of], results.metric).reindex(trials.index)
        for of in ("val", "test")
    )
    judge = test.groupby(arm, sort=False).mean()
    means = clean.groupby(arm, sort=False).mean(), validation.groupby(arm, sort=False).mean()
    families = [family for family, own in FAMILIES.items() if set(own) & set(judge)]
    every = [choose(family, *means, judge) for family in families]
    single = []
    for family in families:
        drawn = []
        for _, rows in trials.groupby("replicate"):
            own = arm[rows.index]
            drawn.append(
                choose(family, clean[rows.index].set_axis(own), validation.loc[rows.index].set_axis(own), judge)
            )
        clean_score, shifted_score = (
            sum(getattr(each, name) for each in drawn) / len(drawn) for name in ("clean", "shifted")
        )
        single.append(Choices(family, clean_score, shifted_score, drawn[0].best))
    return every, single


def print_table(choices: Sequence[Choices]) -> None:
    """Print scores and differences in percent points as a Markdown table, with the mean over families."""
    print("| family left out | clean validation | other families | best in hindsight | given up | won back |")
    print("|---|---|---|---|---|---|")
    for each in choices:
        names = each.arms or ("",) * 3
        cells = (
            f"{100 * value:.1f}{f' ({name})' if name else ''}"
            for value, name in zip((each.clean, each.shifted, each.best), names, strict=True)
        )
        print(f"| {each.family} | {' | '.join(cells)} | {100 * each.given_up:.1f} | {100 * each.won_back:+.1f} |")
    given_up, won_back = (100 * sum(getattr(c, of) for c in choices) / len(choices) for of in ("given_up", "won_back"))
    print(f"| mean | | | | {given_up:.1f} | {won_back:+.1f} |\n", flush=True)


def main() -> None:
    """Run the study, choose, print both tables and a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--storage", default="results")
    parser.add_argument("--metric", default="balanced_accuracy")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    asked = parser.parse_args()
    overrides = [*asked.overrides, "evaluation.validation_shifts=[all]", "hypotheses=[]"]
    name = f"{load_study(asked.study, overrides).study}-robust-selection"
    overrides.append(f"study={name}")
    words = [sys.executable, "-m", "robustsweep", "run", str(asked.study), "--storage", asked.storage]
    subprocess.run(
        [*words, *(word for each in overrides for word in ("--set", each))], check=True, env=environment(), cwd=ROOT
    )
    results = load_results(Ledger(asked.storage, name), asked.metric)
    every, single = choose_everywhere(results)
    print(
        f"\n{results.counts['complete']} trained models, {len(results.labels)} arms; arms by means over replicates:\n"
    )
    print_table(every)
    print("arms chosen from single replicates, on average:\n")
    print_table(single)
    given_up, won_back = (sum(getattr(each, of) for each in every) / len(every) for of in ("given_up", "won_back"))
    facts = {"study": name, "models": results.counts["complete"], "given_up": given_up, "won_back": won_back}
    Line("robust_selection", won_back / given_up if given_up else 1.0, 0.0, facts).emit()


if __name__ == "__main__":
    main()

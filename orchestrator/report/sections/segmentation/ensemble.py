"""Table of the ensemble of an arm's segmentations: its vote beside its members, and what their agreement tells."""

from __future__ import annotations

from html import escape

from orchestrator.analysis.failure_detection import EnsembleScores, VotedSet
from orchestrator.report.page import Cell, Column, callout, note, table

_SHOWN_FACTOR = 1000
_COLUMNS = (
    "cases",
    "Dice of the vote",
    "mean Dice of its members",
    f"AUGRC × {_SHOWN_FACTOR:,}",
    f"AURC × {_SHOWN_FACTOR:,}",
    "Spearman",
    "AUROC, %",
    "FPR at 95 %, %",
    "sensitivity, %",
    "specificity, %",
)


def show_ensemble(ensemble: EnsembleScores, label: str) -> str:
    """Return a row per unshifted set (HTML), and why something is missing.

    Args:
        ensemble: the ensemble of an arm.
        label: which arm, as a noun without an article.
    """
    body = ""
    if ensemble.voted:
        columns = [Column("ensemble on"), *(Column(each, is_number=True) for each in _COLUMNS)]
        rows = [[Cell(escape(each.name), each.name), *_list_cells(each)] for each in ensemble.voted]
        text = (
            f"The {ensemble.num_members} replicates of the {label} as one ensemble: a pixel has the class that most of "
            "them predict, of equally many the first one (background before a structure). It is a vote and no mean of "
            "probabilities, which are not stored, so it has no calibration error. Its confidence is the pairwise Dice "
            "of its members. AUGRC and AURC of 1 − Dice of the vote, and Spearman’s correlation with it, say whether "
            "cases on which the members differ are those that fail; AUROC and FPR, whether they tell a set from the "
            "test images; sensitivity is the share of a set below the threshold that 95 % of validation reach, "
            "specificity that of the test images above it. This is one set of trained models, so there is no "
            "interval over trainings."
        )
        body += note(text) + table(columns, rows)
    return body + ("" if ensemble.problem is None else callout(ensemble.problem, "warn"))


def _list_cells(voted: VotedSet) -> list[Cell]:
    failure, ood = voted.failure, voted.ood
    return [
        Cell(f"{voted.num_cases:,}", voted.num_cases),
        _cell(voted.vote_dice, "{:.3f}"),
        _cell(voted.member_dice, "{:.3f}"),
        _cell(failure.get("augrc"), "{:.1f}", _SHOWN_FACTOR),
        _cell(failure.get("aurc"), "{:.1f}", _SHOWN_FACTOR),
        _cell(failure.get("spearman"), "{:+.2f}"),
        *(_cell(ood.get(name), "{:.1f}", 100) for name in ("auroc", "fpr_at_95_tpr", "sensitivity", "specificity")),
    ]


def _cell(value: float | None, form: str, factor: int = 1) -> Cell:
    return Cell("–", "") if value is None else Cell(form.format(factor * value).replace("-", "−"), value)

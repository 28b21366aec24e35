"""Agreement of methods of attribution and their metrics: in the ranks of arms or trials, and in a claim's direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.inference.evidence import assess_evidence
from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.results import Results
from orchestrator.study.hypotheses import Directed, Hypothesis
from trainables.evaluation.attribution.table import METHODS, OVERALL, name_attribution, split_attribution

#: Fewest arms whose ranks are compared; of fewer the trials are.
MIN_ARMS = 4
#: Fewest trials: of three the order agrees by chance once in six times.
_MIN_TRIALS = 5


@dataclass(frozen=True)
class RankAgreement:
    """Rank correlations between methods × metrics."""

    #: Columns of trials.csv, in the order of rows and columns of the matrix.
    columns: tuple[str, ...]
    #: Kendall's τ-b, −1 to 1; NaN where one of the two is constant.
    kendall: np.ndarray
    #: Arms or trials.
    noun: str
    number: int


def rank_agreement(results: Results, metrics: Sequence[str] = OVERALL) -> RankAgreement | None:
    """Return whether metrics of all methods rank the arms alike, or the trials of few arms.

    None if there are fewer than two columns, or too few trials.

    Args:
        results: tables of the study.
        metrics: names of rows of the table, such as the overall ones, which measure the same thing.
    """
    from scipy.stats import kendalltau

    complete = results.complete
    names = [name_attribution(method, metric) for metric in metrics for method in METHODS]
    columns = [name for name in names if name in complete and complete[name].notna().any()]
    table = complete.groupby("name", sort=False)[columns].mean().dropna() if columns else pd.DataFrame()
    noun = "arms"
    if len(table) < MIN_ARMS:
        table, noun = complete[columns].dropna(), "trials"
    if len(columns) < 2 or len(table) < (MIN_ARMS if noun == "arms" else _MIN_TRIALS):
        return None
    kendall = np.array([[float(kendalltau(table[one], table[other])[0]) for other in columns] for one in columns])
    return RankAgreement(tuple(columns), kendall, noun, len(table))


def find_disagreement(hypothesis: Hypothesis, effect: float, measured: Measured) -> str | None:
    """Return in words which methods or metrics have an effect in the other direction, None if none has.

    Those of the same claim are compared: the same metric by every computed method, and of the overall metrics
    (``OVERALL``), which measure the same thing, all of them. Only hypotheses that claim a direction are asked about,
    since an effect near 0 has none.

    Args:
        hypothesis: hypothesis with an attribution metric of trained networks.
        effect: its effect.
        measured: values of the study.
    """
    own = split_attribution(hypothesis.metric)
    if own is None or own[1] or own[0] not in METHODS or not isinstance(hypothesis, Directed) or effect == 0:
        return None
    metrics = OVERALL if own[2] in OVERALL else (own[2],)
    against = []
    for name in (name_attribution(method, metric) for method in METHODS for metric in metrics):
        trials = measured.results.trials
        if name == hypothesis.metric or name not in trials or not trials[name].notna().any():
            continue
        other = assess_evidence(hypothesis.model_copy(update={"metric": name}), measured).effect
        if other is not None and other * effect < 0:
            against.append(f"{name.removeprefix('attribution/')} {other:+.3g}")
    if not against:
        return None
    here = f"{hypothesis.metric.removeprefix('attribution/')} {effect:+.3g}"
    return f"methods or metrics disagree in direction: {here}, but {', '.join(against)}"

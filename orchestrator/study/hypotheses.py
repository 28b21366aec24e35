"""Hypotheses of a study file: the claim, the arms that are compared, and the criterion of the test.

A hypothesis compares, replicate by replicate, trials that differ only in the factors that it names: a *contrast*.
Every kind of hypothesis is a weighted sum of the means of a few groups of arms (``parts``), within each *cell*. A cell
is one combination of the levels of all other factors.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import Field, TypeAdapter, ValidationError

from orchestrator.study.grid import When, format_label
from trainables.evaluation.metrics import (
    AGGREGATES,
    DROPS,
    METRICS,
    RELATIVE,
    SEGMENTATION_METRICS,
    SITE_AGGREGATES,
    list_metrics_of,
    name_over_shifts,
    name_over_sites,
    name_unshifted,
)
from trainables.frozen import Frozen, Severity, canonical_json
from trainables.shifts.tables import FAMILIES, OTHER

#: Assumption: ten times the hypotheses of a large study.
MAX_HYPOTHESES = 100
#: Family of hypotheses that name none. The p-values of a family are corrected together.
DEFAULT_FAMILY = "main"
#: Fewest external sites for a verdict over sites.
MIN_SITES = 6
#: Fewest levels for a verdict on a correlation across them.
MIN_CORRELATED = 6
#: A line through two levels is only a difference.
MIN_TREND_LEVELS = 3
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
#: Family → names of shifts.
Families = dict[Name, Annotated[list[str], Field(min_length=1)]]
PairedTest = Literal["permutation", "wilcoxon_signed_rank", "sign"]
_TEST_TEXT = "Test on the paired differences."


class _Hypothesis(Frozen):
    """Fields of every kind of hypothesis."""

    name: Name = Field(description="Short name: in the report, and in MLflow as hypothesis/<name>/….")
    claim: str = Field(min_length=1, max_length=1000, description="The claim in words.")
    metric: str = Field(
        "robustness/mean_balanced_accuracy",
        description="Column of trials.csv, shift/<name>/<metric>, family/<name>/<metric>, slope/<name>/<metric>, "
        "drop/<name>/<metric>, relative_drop/<name>/<metric>, dataset/<name>/<metric>, be/<name>, rbe/<name>, "
        "failure/<score>/augrc, ood/<score>/<set>/auroc, representation/<name>, attribution/<method>/<metric>, or such "
        "a column of a label map or class: <name>/id/<metric>.",
    )
    severities: tuple[Severity, ...] | None = Field(
        None, min_length=1, description="With shift/<name>/<metric>: its mean over these; null: over all."
    )
    families: Families | None = Field(
        None, description="Families of shifts that the claim is about; null: report.families where it is about any."
    )
    where: When | None = Field(None, description="Only in these arms: factor: level, or list of levels.")
    alpha: float = Field(
        0.05, ge=0.001, le=0.5, description="Error rate of a whole family, two-sided; the same in all of it."
    )
    family: Name = Field(DEFAULT_FAMILY, description="p-values of one family are corrected together, after Holm.")
    max_missing: float = Field(
        0.0, ge=0, lt=1, description="Share of the planned pairs that may be missing before nothing is concluded."
    )


class _Directed(_Hypothesis):
    """Fields of the hypotheses that claim a direction, and perhaps a size."""

    direction: Literal["higher", "lower", "two-sided"] = Field(
        description="What is claimed of the effect: above 0, below 0, or other than 0."
    )
    smallest_effect: float = Field(
        ge=0, description="Claimed size, in the metric's units: the effect is tested against it. 0: any size."
    )
    over: Literal["replicates", "shifts", "sites"] = Field(
        "replicates",
        description="replicates: a verdict, tested over independently trained models. shifts: no verdict, but under "
        "how many families of shifts these trained models agree. sites: a verdict over external sites and "
        "replicates.",
    )


class Comparison(_Directed):
    """Treatment against control: {factor: level}, or {factor: augmentation, level: strong}."""

    kind: Literal["comparison"] = "comparison"
    treatment: When = Field(description="The arms that are claimed to differ: factor: level, or list of levels.")
    control: When = Field(description="The arms they are compared with; the same factors as in treatment.")
    test: PairedTest = Field("permutation", description=_TEST_TEXT)


class _Margin(_Hypothesis):
    """Fields of the hypotheses that claim an effect within a margin."""

    treatment: When = Field(description="factor: level, or list of levels.")
    control: When = Field(description="The same factors as in treatment.")
    margin: float = Field(gt=0, description="Largest difference that does not matter, in the metric's units.")
    test: PairedTest = Field("permutation", description=_TEST_TEXT)


class Equivalence(_Margin):
    """Treatment and control differ by less than the margin: two one-sided tests, each at alpha."""

    kind: Literal["equivalence"] = "equivalence"


class NonInferiority(_Margin):
    """Treatment is not worse than control by the margin or more; the metric's direction says what is worse."""

    kind: Literal["non_inferiority"] = "non_inferiority"


class Interaction(_Directed):
    """The difference of differences: treatment − control in the arms ``at``, minus the same in the arms ``versus``."""

    kind: Literal["interaction"] = "interaction"
    treatment: When = Field(description="factor: level, or list of levels.")
    control: When = Field(description="The same factors as in treatment.")
    at: When = Field(description="The arms in which the effect is claimed to be larger (higher) or smaller (lower).")
    versus: When = Field(description="The arms it is compared with there; the same factors as in at.")
    test: PairedTest = Field("permutation", description="Test on the paired differences of differences.")


class Trend(_Directed):
    """A metric that rises or falls with a numeric factor; the effect is a line's rise from lowest to highest level.

    With treatment and control it is their difference that rises or falls.
    """

    kind: Literal["trend"] = "trend"
    treatment: When | None = Field(None, description="Follows treatment − control; null: the metric itself.")
    control: When | None = Field(None, description="The same factors as in treatment.")
    factor: str = Field(description="A factor whose levels are numbers.")
    levels: list[float] | None = Field(None, description="Three or more of its levels; null: all.")
    test: Literal["page", "permutation", "wilcoxon_signed_rank", "sign"] = Field(
        "page",
        description="page: of ordered alternatives, on ranks within a unit; the others on the slopes. Size is always "
        "tested on the slopes.",
    )


class Correlation(_Hypothesis):
    """Two gains, treatment − control, that rise and fall together across the levels of a factor, such as data sets."""

    kind: Literal["correlation"] = "correlation"
    across: str = Field(description="A factor: each of its levels is one unit. A verdict takes six.")
    treatment: When = Field(description="factor: level, or list of levels.")
    control: When = Field(description="The same factors as in treatment.")
    with_metric: str | None = Field(None, description="Metric of the other gain; null: the same.")
    with_treatment: When | None = Field(None, description="Treatment of the other gain; null: the same.")
    with_control: When | None = Field(None, description="Control of the other gain; null: the same.")
    trainings: Literal["disjoint", "same"] = Field(
        "disjoint",
        description="disjoint: the two gains are of different replicates, in turn, because what chance does to a "
        "trained model would be in both. same: both are of all replicates.",
    )
    direction: Literal["higher", "lower", "two-sided"] = Field(
        description="What is claimed of the correlation: above 0, below 0, or other than 0."
    )
    test: Literal["spearman", "pearson"] = Field("spearman", description="Coefficient; p is of permuted levels.")


Directed = Comparison | Interaction | Trend
Hypothesis = Directed | Equivalence | NonInferiority | Correlation
HypothesisConfig = Annotated[Hypothesis, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Hypothesis] = TypeAdapter(HypothesisConfig)
#: Kind → fields that select arms.
SELECTORS = {
    "comparison": ("treatment", "control", "where"),
    "equivalence": ("treatment", "control", "where"),
    "non_inferiority": ("treatment", "control", "where"),
    "interaction": ("treatment", "control", "at", "versus", "where"),
    "trend": ("treatment", "control", "where"),
    "correlation": ("treatment", "control", "with_treatment", "with_control", "where"),
}


def expand_kinds(tree: Mapping[str, Any]) -> None:
    """Expand the short forms of hypotheses in place.

    Adds ``kind: comparison`` and the study's families of shifts where a claim depends on them, so that other families
    are another claim; replaces ``{factor: f, level: l}``.
    """
    listed, report = tree.get("hypotheses"), tree.get("report")
    families = report.get("families") if isinstance(report, dict) else None
    if not (isinstance(families, dict) and all(isinstance(shifts, list) for shifts in families.values())):
        families = None  # left to validation
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict):
            entry.setdefault("kind", "comparison")
            if families and (entry.get("over") == "shifts" or is_about_families(str(entry.get("metric")), families)):
                entry.setdefault("families", families)
            for field in dict.fromkeys(itertools.chain.from_iterable(SELECTORS.values())):
                when = entry.get(field)
                if isinstance(when, dict) and set(when) == {"factor", "level"} and isinstance(when["factor"], str):
                    entry[field] = {when["factor"]: when["level"]}


def read_hypothesis(content: Any) -> Hypothesis | None:
    """Return the hypothesis in plain values, None if they are not valid."""
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError:
        return None


def describe_hypothesis(hypothesis: Hypothesis) -> dict[str, Any]:
    """Return a hypothesis as JSON values, including defaults, in a form that is equal for equivalent hypotheses."""
    content = hypothesis.model_dump(mode="json")
    for field in SELECTORS[hypothesis.kind]:
        if content[field] is not None:
            content[field] = {factor: sorted(_listed(wanted)) for factor, wanted in content[field].items()}
    for field in ("families", *(("treatment", "control") if isinstance(hypothesis, Trend) else ())):
        if content[field] is None:  # as in versions that were registered before there were any
            del content[field]
    for field in ("severities", "levels"):
        if content.get(field) is not None:
            content[field] = sorted(set(content[field]))
    return content


def compute_hypotheses_sha256(contents: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest of hypotheses as returned by ``describe_hypothesis``, independent of their order."""
    text = canonical_json(sorted(map(dict, contents), key=lambda content: str(content["name"])))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_comparison(hypothesis: Hypothesis) -> str:
    """Return the compared arms in words."""
    where = f", where {_name(hypothesis.where)}" if hypothesis.where else ""
    if isinstance(hypothesis, Trend):
        levels = "" if hypothesis.levels is None else f" = {', '.join(map(format_label, hypothesis.levels))}"
        followed = ""
        if hypothesis.treatment is not None and hypothesis.control is not None:
            followed = f" of {_name(hypothesis.treatment)} against {_name(hypothesis.control)}"
        return f"trend{followed} over {hypothesis.factor}{levels}{where}"
    if isinstance(hypothesis, Correlation):
        one, other = (
            f"{_name(gain.treatment)} against {_name(gain.control)} in {gain.metric}" for gain in list_gains(hypothesis)
        )
        return f"{one}, correlated with {other}, across {hypothesis.across}{where}"
    sides = f"{_name(hypothesis.treatment)} against {_name(hypothesis.control)}"
    if isinstance(hypothesis, Interaction):
        return f"{sides}, at {_name(hypothesis.at)} more than at {_name(hypothesis.versus)}{where}"
    return f"{sides}{where}"


def counts_shifts(hypothesis: Hypothesis) -> TypeGuard[Directed]:
    """Return whether a hypothesis asks over how many families of shifts trained models agree, which is no verdict."""
    return isinstance(hypothesis, Directed) and hypothesis.over == "shifts"


def counts_sites(hypothesis: Hypothesis) -> TypeGuard[Directed]:
    """Return whether a hypothesis is tested over external sites, crossed with independently trained models."""
    return isinstance(hypothesis, Directed) and hypothesis.over == "sites"


def get_claimed_size(hypothesis: Hypothesis) -> float:
    """Return the size that a hypothesis is tested against, in the metric's units: smallest effect or margin."""
    if isinstance(hypothesis, Correlation):
        return 0.0
    return hypothesis.margin if isinstance(hypothesis, Equivalence | NonInferiority) else hypothesis.smallest_effect


def list_gains(hypothesis: Correlation) -> tuple[Correlation, Correlation]:
    """Return the two gains of a correlation, each as ``metric``, ``treatment`` and ``control``."""
    other = {
        "metric": hypothesis.with_metric or hypothesis.metric,
        "treatment": hypothesis.with_treatment or hypothesis.treatment,
        "control": hypothesis.with_control or hypothesis.control,
    }
    return hypothesis, hypothesis.model_copy(update=other)


def list_measured(hypothesis: Hypothesis) -> Sequence[Hypothesis]:
    """Return the hypothesis, or the two gains of a correlation: whatever compares arms by one metric."""
    return list_gains(hypothesis) if isinstance(hypothesis, Correlation) else (hypothesis,)


def counts_replicates(hypothesis: Hypothesis) -> bool:
    """Return whether a hypothesis is tested over independently trained models."""
    return not (isinstance(hypothesis, Correlation) or counts_sites(hypothesis) or counts_shifts(hypothesis))


def _name(when: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor}={' or '.join(_listed(wanted))}" for factor, wanted in when.items())


def _listed(wanted: Any) -> list[str]:
    return sorted({format_label(item) for item in (wanted if isinstance(wanted, list | tuple) else [wanted])})


# --------------------------------------------------------------------------- metrics


#: Metrics of an evaluation of all classes together, of any task.
TESTED = METRICS | SEGMENTATION_METRICS


def list_metrics(view: str = "") -> list[str]:
    """Return the metrics that every study has, without those of one external set, shift or family.

    Args:
        view: label map or class (``split_view``), whose metrics are named without it; "" is none of them.
    """
    known = list_metrics_of(view) if view else TESTED
    names = [name_unshifted(metric) for metric in known]
    names += [name_over_shifts(aggregate, metric) for aggregate in AGGREGATES for metric in known]
    names += [name_over_sites(aggregate, metric) for aggregate in SITE_AGGREGATES for metric in known]
    return names + [f"{'validation' if view else 'val'}/{metric}" for metric in known]


def split_metric(metric: str) -> tuple[str, str, str]:
    """Return kind, name and metric of ``kind/name/metric``, or of ``be/name`` and ``rbe/name``, whose metric they are.

    Kind and name are empty for the others. Kinds: shift, family, slope, drop, relative_drop, external, dataset, be,
    rbe.
    """
    kind, _, rest = metric.partition("/")
    if kind in RELATIVE and rest and "/" not in rest:
        return kind, rest, kind
    name, slash, last = rest.rpartition("/")
    is_known = kind in ("shift", "family", "slope", "external", "dataset", *DROPS) and slash and name
    return (kind, name, last) if is_known else ("", "", metric)


def is_about_families(metric: str, families: Iterable[str]) -> bool:
    """Return whether a metric is that of a family of shifts: of one of ``families``, or of a default one."""
    kind, name, _ = split_metric(metric)
    return kind == "family" or (kind in ("slope", *DROPS, *RELATIVE) and name in {*families, *FAMILIES, OTHER})


def find_shift_metric(metric: str) -> str | None:
    """Return the metric whose mean over shifts ``metric`` is, None if ``metric`` is not a mean over shifts."""
    return next((name for name in TESTED if metric == name_over_shifts("mean", name)), None)


def find_site_metric(metric: str) -> str | None:
    """Return the metric whose mean over external sites ``metric`` is, None if ``metric`` is not such a mean."""
    return next((name for name in TESTED if metric == name_over_sites("mean", name)), None)


def iterate_selectors(hypothesis: Hypothesis) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and content of each field that selects arms and is set."""
    for field in SELECTORS[hypothesis.kind]:
        when = getattr(hypothesis, field)
        if when is not None:
            yield field, when

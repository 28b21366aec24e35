"""Print docs/metrics.md from the table of metrics: ``python docs/metrics.py > docs/metrics.md``."""

from __future__ import annotations

from trainables.evaluation.confidence import CONFIDENCE_SCORES
from trainables.evaluation.metric_tables.stage import STAGE_METRICS, SUPERVISED_METRICS
from trainables.evaluation.metrics import (
    ATTRIBUTION_METRICS,
    CLASS_METRICS,
    FAILURE_METRICS,
    METRICS,
    OOD_METRICS,
    REJECTION_METRICS,
    RELATIVE,
    REPRESENTATION_METRICS,
    SEGMENTATION_FAILURE_METRICS,
    SEGMENTATION_METRICS,
    SELECTIVE_METRICS,
    Metric,
    name_over_shifts,
)
from trainables.evaluation.seen import KINDS, POLICIES
from trainables.shifts.tables import FAMILIES, OTHER

HEAD = """<!-- Generated from trainables/evaluation/metrics.py: python docs/metrics.py > docs/metrics.md -->

# Metrics

Every number of a report is computed from the stored logits f (one per class) and the labels, on one set of images, by
`trainables/evaluation/classification.py`. p is the softmax of f. ↑ higher is better, ↓ lower is better, – neither.

"""

FITTED = """
## Fitted on validation

Three numbers of a trained model are fitted on its unshifted validation images and applied unchanged to the test set,
every shift and every external set. `result.json` has them in `validation_fit`.

- `temperature`: the T > 0 that makes the log loss of f/T smallest. There is none if every validation image is
  classified right (the smaller T, the better) or if the outputs are no better than chance; metrics after temperature
  scaling are then undefined. On validation itself they are what was optimised, not an estimate.
- `threshold_at_specificity_95`, `threshold_at_sensitivity_95`, for two classes: class 1 is *positive*, and an image is
  called positive if f₁ − f₀ is above the threshold. The first is the smallest score of a negative validation image at
  which specificity is at least .95, the second the largest number at which sensitivity is. Away from validation
  neither target holds any more: read sensitivity and specificity at one threshold together.

Predictive values depend on the prevalence, which a test set seldom has from the population.
`compute_predictive_values(sensitivity, specificity, prevalence)` of `trainables/evaluation/validation_fit.py` gives
PPV = se·π / (se·π + (1 − sp)·(1 − π)) and NPV = sp·(1 − π) / (sp·(1 − π) + (1 − se)·π) at a prevalence π.
"""

NAMES = """
## Headline numbers

| name | what it is |
|---|---|
| `validation/<metric>` (`val/…` in `trials.csv`) | on unshifted validation images; these and the next may choose |
| `validation/robustness/…` ↑, `validation/calibration/…` ↓ | as below, over the shifted validation images |
| `id/<metric>` ↑, `calibration/<metric>` ↓ | on the unshifted test images |
| `{mean_score}` ↑, `{mean_error}` ↓ | *mean over shifts* |
| `robustness/mean_unseen_<metric>`, `robustness/mean_seen_<metric>` | mean over *unseen* and *seen* types |
| `robustness/mean_unused_<metric>` | mean over types *not used for selection* |
| `{worst_shift_score}` ↑, `{worst_shift_error}` ↓ | *worst shift* |
| `{worst_cell_score}` ↑, `{worst_cell_error}` ↓ | *worst cell* |
| `external/<set>/<metric>` | on an external set |
| `shift/<name>/<metric>` | under one shift, on average over its severities |
| `family/<name>/<metric>` | *mean over a family of shifts*: over severities, then shifts of a type, then its types |
| `slope/<name>/<metric>` | *slope over severity*, of one shift or a family |
| `drop/<name>/<metric>`, `relative_drop/<name>/<metric>` ↓ | *drop* under one shift, a family or all (`mean`) |
| `be/mean`, `rbe/mean`, `be/<name>`, `rbe/<name>` ↓ | BE and rBE, over all shifts or a family |
| `<label map>/…` | as those above, of classes merged afterwards ([label maps](transfer.md)) |
| `class_<index>/…`, `<label map>/class_<index>/…` | the same, of one class by itself (*single classes*, below) |
| `representation/<name>` | of the features on unshifted test images (*representations*, below) |

- **Mean over shifts**: the mean over severities, then over the shifts of one type, then over types. A type is a
  shift's name, but all cells of a stain grid are one type. Unshifted images do not count.
- **Seen and unseen**: a type is *seen* if the augmentation (or the views in contrastive pretraining) of any arm of the
  study that has started contains a change of the same kind, and *unseen by the policies* otherwise. The same types
  count for every arm, also for one without augmentation: means over different shifts would not be comparable. A
  composition is seen if a part of it is; shifts of packages count as unseen. Report and `trials.csv` have both means,
  for the report's metric, where a study has types of both sorts; the table below says what each policy contains.
- **Shifted validation images** are those of `evaluation.validation_shifts` ([shifts](shifts.md)).
- **Used for selection**: a type is used for selection if `evaluation.validation_shifts` names it or another one of its
  kind (the kinds of the table below; a composition is used if a part of it is). Where some types are used and others
  are not, report and `trials.csv` have the mean over the others, for the report's metric; figures mark the used with †.
- **Worst shift**: the worst of the types, each on average as above: the smallest for ↑, the largest for ↓.
- **Worst cell**: the worst single shift × severity.
- **Slope over severity**: the rise of the least-squares line over the evaluated severities (three or more), from the
  lowest to the highest; of a family the mean over its types. Treatment minus control of it says whether a gain grows
  with severity.
- **Drop**: unshifted − shifted, on average over severities (shifted − unshifted where lower is better); of a family the
  mean over its types. The *relative* drop is divided by the unshifted value, and missing where that is 0.
- **BE and rBE** are relative to the study's reference (`report.reference`), which is 1. In a hypothesis a replicate
  counts with its linearised share in the ratio of means over replicates (Cochran 1977, section 2.11), so their mean is
  the number of the report's table. Shifts without a usable denominator are left out for all replicates.

A metric that is undefined under a shift has no mean and no worst value, because a mean over fewer shifts would not be
comparable; `result.json` says why. Trial, report, hypotheses, `stats`, search and selection take these numbers from one
function, `average_shifts` of `trainables/evaluation/shift_means.py`.
"""


SEGMENTATION = """
## Segmentations

Of a study with `task: segmentation`, in place of the metrics above and under the same names: `id/dice`,
`robustness/mean_dice`, `external/<set>/hd95`, `calibration/band_ece`, `class_1/id/dice`, …; computed by
`trainables/evaluation/segmentation/`. Only calibration is `calibration/…`: distances, of which lower is better, are
`id/hd95` and `robustness/mean_hd95`.

A case is an image or a volume. Where neither its target nor its prediction has a class, the case is left out of the
means of that class, and counted (`num_empty`). A missed or an invented structure is not: it has the worst value, 0 or
the image's diagonal, and is counted (`num_missed`, `num_invented`; `missed` is their share). A mean without it would
rise where a model misses more. Distances are in mm where the spacing of the images is known, in pixels where it is not.
All are this package's own code on SciPy and PyTorch; of cases with the structure on both sides, Dice, IoU, HD95, ASSD
and NSD are those of MONAI 1.6.1 (`benchmarks/segmentation.py`).

Pixels that do not count, such as those outside of the field of view, belong to neither mask. Calibration is over the
pixels of all cases together: a large case weighs more than a small one, and an ECE of one case is mostly noise.

"""


DETECTION = """
## Failure and out-of-distribution detection

Of every confidence score (below) on every set and shift, in `detection.json` of a trial; see
[failure detection](failure_detection.md). Headline numbers are `failure/<score>/augrc` on the unshifted test images,
`failure/<score>/mean_shifted_augrc` (*mean over shifts*), `failure/<score>/mean_external_augrc`, the same on validation
as `validation/failure/<score>/augrc`, and `ood/<score>/<set>/auroc`; `near`, `far`, `near_full_spectrum` and
`far_full_spectrum` are means over sets of a role.
"""

CLASSES = """
## Single classes

With `evaluation.per_class`, of each class k, counted from 0, as `class_<k>/…`.

"""

REPRESENTATION = """
## Representations

What the penultimate features of a trained network hold, on at most 1,000 unshifted test images, as
`representation/<name>`; `representation.json` of a trial has the same for every layer, see
[representations](representations.md). They describe: none of them chooses a model. λ are the eigenvalues of the
covariance, the largest first.

"""


STAGES = """
## Contrastive pretraining

Of a stage, per epoch in its `epochs.jsonl` and in MLflow; its `result.json` has the last values as `ssl/final_…`, and
under `collapse` the verdict: `none`, or `dimensional` where the last epoch is flagged. A stage whose images are all
mapped to one point fails as collapsed. Features are the encoder's, embeddings those that the loss compares.

"""

SUPERVISED = """
## Supervised pretraining

Of a step that is trained with the labels of another source, of its last epoch, in its `result.json`.

"""

ATTRIBUTION = """
## Where models look

Of relevance maps on lesion masks, with `evaluation.attribution`: `attribution/<method>/<metric>` on the unshifted test
images, `attribution/<method>/randomised_<metric>` of the same network with random weights, and
`attribution/centre_prior/<metric>` of a Gaussian around the middle of the image; see
[where models look](attribution.md).

"""


def describe_metrics() -> str:
    """Return the content of docs/metrics.md."""
    header = "| name | title | formula | | range | needs | source |\n|---|---|---|---|---|---|---|\n"
    rows = "".join(map(_row, (METRICS | RELATIVE).values()))
    names = {
        f"{aggregate}_{kind}": name_over_shifts(aggregate, metric).replace(metric, "<metric>")
        for aggregate in ("mean", "worst_shift", "worst_cell")
        for kind, metric in (("score", "accuracy"), ("error", "brier"))
    }
    stages = STAGES + header + "".join(map(_row, STAGE_METRICS.values()))
    supervised = SUPERVISED + header + "".join(map(_row, SUPERVISED_METRICS.values()))
    layers = REPRESENTATION + header + "".join(map(_row, REPRESENTATION_METRICS.values()))
    segmentations = SEGMENTATION + header + "".join(map(_row, SEGMENTATION_METRICS.values()))
    classes = CLASSES + header + "".join(map(_row, CLASS_METRICS.values()))
    parts = (
        HEAD,
        header,
        rows,
        FITTED,
        NAMES.format(**names),
        classes,
        segmentations,
        _detection(header),
        stages,
        supervised,
        layers,
        _attribution(header),
        _seen(),
        _families(),
    )
    return "".join(parts)


def _detection(header: str) -> str:
    """Return the tables of failure and out-of-distribution detection, and of the scores that they judge."""
    tables = "".join(
        f"\n### {title}\n\n{header}{''.join(map(_row, metrics.values()))}"
        for title, metrics in (
            ("Failures", FAILURE_METRICS | SELECTIVE_METRICS | SEGMENTATION_FAILURE_METRICS),
            ("Out of distribution", OOD_METRICS | REJECTION_METRICS),
        )
    )
    scores = (
        "\n### Confidence scores\n\n| name | title | ranks by | needs | source |\n|---|---|---|---|---|\n"
        + "".join(
            f"| `{score.name}` | {score.title} | {score.formula} | {score.needs} | {score.source} |\n"
            for score in CONFIDENCE_SCORES.values()
        )
    )
    return DETECTION + tables + scores


def _attribution(header: str) -> str:
    """Return the table of metrics of relevance maps on lesions."""
    return ATTRIBUTION + header + "".join(map(_row, ATTRIBUTION_METRICS.values()))


def _seen() -> str:
    """Return the table of policies and the shifts of the bank that they contain."""
    header = "\n## Shifts that a policy contains\n\n| policy | shifts of the bank that count as seen |\n|---|---|\n"
    rows = {
        policy: ", ".join(f"`{shift}`" for kind in KINDS if kind in own for shift in KINDS[kind]) or "–"
        for policy, own in POLICIES.items()
    }
    rows["any with erasing"] = ", ".join(f"`{shift}`" for shift in KINDS["overlay"]) + " as well"
    return header + "".join(f"| {policy} | {shifts} |\n" for policy, shifts in rows.items())


def _families() -> str:
    """Return the table of default families of shifts."""
    header = "\n## Families of shifts\n\n| default family | shifts of the bank |\n|---|---|\n"
    rows = {family: ", ".join(f"`{shift}`" for shift in shifts) for family, shifts in FAMILIES.items()}
    rows["stain"] = "all cells of a stain grid"
    rows[OTHER] = "compositions, shifts of a study's own and of packages, unless the study's families list them"
    return header + "".join(f"| `{family}` | {shifts} |\n" for family, shifts in rows.items())


def _row(metric: Metric) -> str:
    span = f"{metric.low:g} to {metric.high:g}".replace("-", "−").replace("inf", "∞")
    arrow = "–" if metric.is_descriptive else "↑" if metric.higher_is_better else "↓"
    cells = (f"`{metric.name}`", metric.title, metric.formula, arrow, span, metric.needs, metric.source or "–")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    print(describe_metrics(), end="")

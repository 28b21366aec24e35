"""Content of the chosen model's card, from the study's tables; after Mitchell et al. 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.wording import explain_used, flatten, mark_used, percent, plural, sentence, word_seen
from orchestrator.planning.states import STOPPED
from orchestrator.selection.card_format import Card, CardPart, Code, Facts, Grid, Items, Text
from orchestrator.selection.part_scores import PartScore, PartScores
from orchestrator.selection.ranking import RULES, Selection, describe_value
from orchestrator.statistics.intervals import MIN_REPLICATES, Summary, summarise
from trainables.config import TrainingConfig, TrialConfig
from trainables.evaluation.validation_fit import compute_predictive_values

_USE = """\
from robustsweep import load_exported

model = load_exported("FOLDER")              # nothing is unpickled
images = model.decode_image("image.png")     # uint8, 1 x {channels} x {size} x {size}
confidence = model(images).softmax(1)        # in the order of model.config.classes"""

#: Settings of the training that the card lists; the others are in config.json of the trial.
_SETTINGS = (
    "training.epochs", "training.batch_size", "training.optimiser", "training.learning_rate", "training.schedule",
    "training.label_fraction", "training.class_weights", "training.select", "training.select_by",
    "training.precision", "training.confidence.kind",
)  # fmt: skip


def build_card(
    results: Results,
    selection: Selection,
    config: TrialConfig,
    *,
    parts: PartScores,
    checks: Sequence[str],
    files: Mapping[str, str],
) -> Card:
    """Return the card of the selected model.

    Args:
        results: results of the study.
        selection: selection made from these results.
        config: configuration of the selected trial.
        parts: scores per site and class of the selected arm.
        checks: numerical checks of the export, as sentences.
        files: name of a file beside the card → its content, in words.
    """
    chosen = results.trials[results.trials["name"] == selection.arm.name]
    data = results.plan["data"]
    return Card(
        title=f"{results.plan['study']}: {selection.arm.name}" + " (oracle)" * selection.oracle,
        eyebrow="Model card" + " · chosen by an oracle" * selection.oracle,
        lede=f"{plural(len(data['classes']), 'class').replace('classs', 'classes')} of {data['name']} images, "
        f"replicate {selection.replicate} ({selection.arm.complete} are complete, from 0). Made to answer: "
        f"{results.plan['question'] or results.plan['study']}",
        warnings=_warnings(selection),
        parts=[
            _intended_use(results, config),
            _data(results),
            _training(results, selection, config),
            _performance(results, selection, chosen, parts),
            _robustness(results, selection, chosen),
            _calibration(results, selection, chosen),
            _selection(selection),
            _limits(results, selection, parts, training=config.training),
            _provenance(results, selection, checks, files),
        ],
        tags=["image-classification", "robustness", results.plan["study"], *(["oracle"] if selection.oracle else [])],
    )


def _warnings(selection: Selection) -> list[str]:
    counts, warnings = selection.counts, []
    if selection.oracle:
        warnings.append(
            f"Chosen by an oracle: {selection.column} is not in-distribution validation. The data that chose it are "
            "among those it is judged by here, so these numbers are a bound and not what to expect."
        )
    lacking = counts["planned"] - counts["complete"] - counts.get(STOPPED, 0)
    if lacking:
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        warnings.append(f"Chosen while {lacking} trials were not complete ({said}): another arm may be better.")
    better = "the numbers here may be better than on new images"
    return [*warnings, *(f"{sentence(remark)}; {better}." for remark in selection.remarks)]


def _intended_use(results: Results, config: TrialConfig) -> CardPart:
    data = results.plan["data"]
    images = config.data
    colour = "grey" if images.channels == 1 else "RGB"
    return CardPart(
        "Intended use",
        [
            Text(
                f"To study which training choices hold up under distribution shift, on {data['name']} images "
                f"({data['modality']}). The network puts {colour} images, brought to {images.image_size} px "
                f"({images.resize}), each into one of: {_list(data['classes'])}."
            ),
            Text(
                "Not a medical device. Not for diagnosis, triage or any decision about a person. Not tested on images "
                "of other kinds, sites or populations than those listed here; before any use, test it on your own."
            ),
            Code(_USE.format(channels=images.channels, size=images.image_size)),
        ],
    )


def _list(values: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} … ({len(values)} in all)"


def _data(results: Results) -> CardPart:
    data = results.plan["data"]
    images = dict(data["num_images"])
    rows = {
        "source": f"{data['name']} (kind {data['kind']}, modality {data['modality']})",
        "fingerprint": data["fingerprint"],
        "images": ", ".join(f"{images.pop(name):,} {name}" for name in ("train", "val", "test")),
        "external sets": ", ".join(f"{count:,} {name}" for name, count in images.items()) or "none",
        "set aside as unusable": str(len(data["quarantined"])),
        "splits": f"no group (patient) is in two of them; {_describe_splits(results)}",
    }
    return CardPart("Data", [Facts(rows)])


def _describe_splits(results: Results) -> str:
    """Return what shares the splits, as far as the trials that have started say it."""
    fields = ("split_seed", "leave_out", "external_sites", "val_fraction", "test_fraction")
    configs = [record.config["config"]["data"] for record in results.records.values()]
    differing = [name for name in fields if any(each.get(name) != configs[0].get(name) for each in configs)]
    return f"{', '.join(differing)} not the same in all trials" if differing else "the same for all arms and replicates"


def _training(results: Results, selection: Selection, config: TrialConfig) -> CardPart:
    record = results.records[selection.signature]
    assert record.result is not None
    flat = flatten(config.model_dump(mode="json"))
    arm = record.config["arm"]
    rows = {f"{name} (varied)": str(arm[name]) for name in results.factors if name in arm}
    part = "" if config.model.stages is None else f" (first {config.model.stages} stages)"
    rows["network"] = f"{config.model.name}{part}, {record.result['num_parameters']:,} weights"
    rows |= {
        name: getattr(config, name).kind
        for name in ("pretraining", "augmentation", "regulariser")
        if name not in results.factors
    }
    rows |= {name.removeprefix("training."): str(flat[name]) for name in _SETTINGS}
    candidate = results.read_candidate(selection.signature)
    rows |= {f"{name.removeprefix('training.')} (tuned)": value for name, value in candidate.get("tuned", {}).items()}
    if candidate:
        tuning = results.plan["tuning"]
        rows["tuned"] = (
            f"candidate {candidate['candidate']} (from 0) of {tuning['candidates']}, the best of this replicate by "
            f"{tuning['metric']}"
        )
    rows["trained"] = f"{record.result['epochs']} epochs; the weights are those of epoch {record.result['best_epoch']}"
    if "confidence_epoch" in record.result:
        rows["trained"] += f", those of its confidence of epoch {record.result['confidence_epoch']}"
    return CardPart("Training", [Facts(rows)])


# ------------------------------------------------------------------------------------------------ results


def _performance(results: Results, selection: Selection, chosen: pd.DataFrame, parts: PartScores) -> CardPart:
    images = results.plan["data"]["num_images"]
    sets = {"validation": ("val", "val"), "in-distribution test": ("id", "test")}
    sets |= {f"{name} (external)": (f"external/{name}", name) for name in results.external_sets}
    rows = []
    for title, (prefix, name) in sets.items():
        values = [_mean(chosen, f"{prefix}/{metric}") for metric in TITLES]
        this = _own(chosen, selection, f"{prefix}/{results.metric}")
        rows.append([title, f"{images.get(name, 0):,}", *values, this])
    columns = ["set", "images", *TITLES.values(), f"this model: {TITLES[results.metric]}"]
    blocks: list[Text | Grid] = [
        Text(
            f"Mean ± standard deviation over {plural(selection.arm.complete, 'replicate')} of the arm; the last column "
            "is the exported replicate."
        ),
        Grid(columns, rows),
    ]
    if parts.sites:
        blocks.append(Text("In-distribution test set, per site:"))
        blocks.append(Grid(["site", "images", "accuracy", "balanced accuracy"], [_site(site) for site in parts.sites]))
    blocks.append(Text("In-distribution test set, per class:"))
    classes = [[part.name, f"{part.num_images:,}", _percent(part.accuracy)] for part in parts.classes]
    blocks.append(Grid(["class", "images", "recall"], classes))
    return CardPart("Results", blocks)


def _site(site: PartScore) -> list[str]:
    assert site.balanced_accuracy is not None
    return [site.name, f"{site.num_images:,}", _percent(site.accuracy), _percent(site.balanced_accuracy)]


def _percent(summary: Summary) -> str:
    return percent(summary.mean, summary.sd)


def _mean(chosen: pd.DataFrame, column: str) -> str:
    return _percent(summarise(chosen[column])) if column in chosen else "undefined"


def _own(chosen: pd.DataFrame, selection: Selection, column: str) -> str:
    if column not in chosen:
        return "undefined"
    return percent(float(chosen.loc[chosen["signature"] == selection.signature, column].iloc[0]))


def _robustness(results: Results, selection: Selection, chosen: pd.DataFrame) -> CardPart:
    metric, frame = results.metric, results.shifts
    frame = frame[(frame["name"] == selection.arm.name) & (frame["set"] == "test") & (frame["severity"] > 0)]
    if frame.empty or metric not in frame:
        return CardPart("Robustness", [Text("The study tested no shift.")])
    rows = []
    for shift, group in frame.groupby("shift", sort=False):
        by_severity = group.groupby("severity")[metric].mean()
        worst = by_severity.idxmin() if by_severity.notna().any() else None
        at = group[group["severity"] == worst][metric]
        rows.append(
            (by_severity.min(), str(shift), _percent(summarise(group.groupby("signature")[metric].mean())), at, worst)
        )
    rows.sort(key=lambda row: (pd.isna(row[0]), row[0]))
    _, name, _, values, severity = rows[0]
    grid = [
        [
            mark_used(shift, results.used_types),
            word_seen(results.seen, [selection.arm.name], shift) or "not known",
            mean,
            _percent(summarise(at)),
            "–" if at_ is None else str(at_),
        ]
        for _, shift, mean, at, at_ in rows
    ]
    text = (
        f"{sentence(TITLES[metric])} on the shifted test set, mean ± standard deviation over replicates, by the "
        f"worst severity. Over all of them {_mean(chosen, f'robustness/mean_{metric}')}; the worst is {name} at "
        f"severity {severity}: {_percent(summarise(values))}. Unshifted: {_mean(chosen, f'id/{metric}')}."
        f"{explain_used(results.used_types)}"
    )
    unused = f"robustness/mean_unused_{metric}"
    if unused in chosen:
        text = f"Over shifts not used for selection: {_mean(chosen, unused)}. {text}"
    return CardPart(
        "Robustness",
        [Text(text), Grid(["shift", "training policy", "mean over severities", "worst severity", "which"], grid)],
    )


def _calibration(results: Results, selection: Selection, chosen: pd.DataFrame) -> CardPart:
    columns = {
        "in-distribution test": "calibration/ece",
        "mean over shifts": "calibration/mean_shifted_ece",
        "worst shift": "calibration/worst_shift_ece",
    }
    columns |= {f"{name} (external)": f"external/{name}/ece" for name in results.external_sets}
    rows = [
        [f"{title}{scaling}", _mean(chosen, f"{column}{suffix}"), _own(chosen, selection, f"{column}{suffix}")]
        for title, column in columns.items()
        for scaling, suffix in (("", ""), (", after temperature scaling", "_scaled"))
        if f"{column}{suffix}" in chosen
    ]
    scores = ", ".join(
        f"{title} {summary.mean:.3f}"
        for title, column in {"log loss": "calibration/nll", "Brier score": "calibration/brier"}.items()
        if column in chosen and (summary := summarise(chosen[column])).mean is not None
    )
    text = (
        f"Expected calibration error, lower is better. On the in-distribution test set also: {scores}."
        if scores
        else ""
    )
    blocks: list[Text | Grid] = [Text(text)] if text else []
    blocks.append(Grid(["set", "ECE", "this model"], rows))
    return CardPart("Calibration", [*blocks, *_thresholds(results, selection, chosen)])


#: Prevalences at which predictive values are given. Our choice: screening, an outpatient clinic, a balanced test set.
_PREVALENCES = (0.01, 0.1, 0.5)


def _thresholds(results: Results, selection: Selection, chosen: pd.DataFrame) -> list[Text | Grid]:
    """Return this model's sensitivity, specificity and predictive values at validation's thresholds, if it has any."""
    record = results.records[selection.signature]
    fit = {} if record.result is None else record.result.get("validation_fit", {})
    own = chosen[chosen["signature"] == selection.signature].iloc[0]
    rows = []
    for at, title in (("specificity_95", "95 % specificity"), ("sensitivity_95", "95 % sensitivity")):
        shares = [float(own.get(f"id/{name}_at_{at}", np.nan)) for name in ("sensitivity", "specificity")]
        if f"threshold_at_{at}" not in fit or np.isnan(shares).any():
            continue
        values = (compute_predictive_values(shares[0], shares[1], prevalence) for prevalence in _PREVALENCES)
        pairs = [f"{percent(positive)} / {percent(negative)}" for positive, negative in values]
        rows.append([title, f"{fit[f'threshold_at_{at}']:.4g}", *map(percent, shares), *pairs])
    if not rows:
        return []
    text = (
        "This model on the in-distribution test set, at thresholds of f₁ − f₀ (class 1 is positive) chosen on "
        "validation. Predictive values (positive / negative) are for populations with so many positives (Bayes)."
    )
    heads = [f"PPV / NPV at {100 * prevalence:g} %" for prevalence in _PREVALENCES]
    return [Text(text), Grid(["validation", "threshold", "sensitivity", "specificity", *heads], rows)]


# ------------------------------------------------------------------------------------------------ selection, limits


def _selection(selection: Selection) -> CardPart:
    counts = ", ".join(f"{count} {state}" for state, count in selection.counts.items() if count)
    rows = [
        [arm.label, str(place), describe_value(arm), f"{arm.complete} / {arm.planned}"]
        for place, arm in enumerate(selection.ranking, start=1)
    ]
    return CardPart(
        "Selection",
        [
            Facts(
                {
                    "chosen by": f"{selection.column} ({selection.chooser})",
                    "rule": RULES[selection.rule],
                    "trials": counts,
                }
            ),
            Items(selection.reasons),
            Grid(["arm", "rank", selection.column, "complete"], rows[:20]),
            *([Text(f"{len(rows) - 20} further arms are in selection.json.")] if len(rows) > 20 else []),
        ],
    )


def _limits(results: Results, selection: Selection, parts: PartScores, *, training: TrainingConfig) -> CardPart:
    items = []
    if not results.external_sets:
        items.append("No external set: nothing is known about images from another site.")
    if not parts.sites:
        items.append("Sites inside the test set are unknown or one: per-site results cannot be given.")
    if selection.arm.complete < MIN_REPLICATES:
        items.append(
            f"{plural(selection.arm.complete, 'replicate')}: the spread over seeds is "
            f"{'unknown' if selection.arm.complete == 1 else 'hardly known'}; at least {MIN_REPLICATES} would do."
        )
    # Plans of older versions lack the key.
    has_own_splits = results.plan.get("base", {}).get("data", {}).get("split") == "per_replicate"
    splits = "each replicate has a split of its own" if has_own_splits else "all replicates share one split of the data"
    epoch = f"The epoch was picked by validation {training.select_by}."
    if training.select == "last":
        epoch = "The epoch was not picked: it is the last."
    items += [
        f"The spread is that of initial weights, order and augmentation; {splits}.",
        f"The arm was picked among {len(selection.ranking)} by {selection.column}, which flatters that column; so does "
        f"picking its best replicate. {epoch}",
        "The shifts are synthetic: they stand for what may happen to images, and real changes of scanner, staining or "
        "population differ. Robustness to others is unknown.",
        "Performance for subgroups of people (age, sex, skin tone, …) was not measured unless it is a site above.",
        "Confidences are as the training left them, not recalibrated (see Calibration).",
    ]
    return CardPart("Limits", [Items(items)])


def _provenance(results: Results, selection: Selection, checks: Sequence[str], files: Mapping[str, str]) -> CardPart:
    record, plan = results.records[selection.signature], results.plan
    assert record.result is not None
    environment = ", ".join(f"{name} {value}" for name, value in record.result["environment"].items())
    rows = {
        "study": f"{plan['study']}, sha256 {plan['study_sha256']}",
        "trial": f"signature {selection.signature}, replicate {selection.replicate}",
        "weights": f"sha256 {record.result['checkpoint_sha256']}",
        "data": f"fingerprint {record.config['data_fingerprint']}",
        "code": f"git commit {record.config['git_commit']}"
        if record.config["git_commit"]
        else "not in a git repository",
        "versions": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "trained on": environment,
    }
    return CardPart(
        "Provenance",
        [
            Facts(rows),
            Text("Numerical checks of what lies in this folder:"),
            Items(checks),
            Text("Files:"),
            Facts(files),
        ],
    )

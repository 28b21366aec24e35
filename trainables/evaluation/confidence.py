"""Confidence scores of predictions: the table of them by name, and the areas that judge them.

A confidence is higher, the more a prediction is trusted. Where the published formula saturates or underflows, images
that differ would tie; values here rank as the formula does, without that: a probability p is given as its log odds
log(p / (1 − p)), an uncertainty u ≥ 0 as −log u. ``ConfidenceScore.read`` turns a value back into the formula's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Shaped

from trainables.errors import ConfigError
from trainables.evaluation.detection import risk_coverage
from trainables.evaluation.detection.logit_scores import (
    Logits,
    Values,
    compute_energy,
    compute_margin,
    compute_max_logit,
    compute_msr,
    compute_predictive_entropy,
)


@dataclass(frozen=True)
class ConfidenceScore:
    """One way to say how much a prediction is trusted.

    Attributes:
        name: name in result files, tables and MLflow.
        title: name in a sentence.
        formula: quantity that the values rank by, in words; where it is an uncertainty, less of it is more confident.
        needs: what it is computed from: "logits"; "features", "layers" or "images" by ``ood``; "members", logits of
            several models; or "scores/<name>", stored per image because only the model can give them.
        source: paper that defines the score.
        scale: what the values are: "as is", "log odds" of the formula, or "−log" of it.
        function: function of logits; None where the score does not come from logits alone.
        is_scaled: whether logits are divided by the temperature of validation first (``validation_fit``).
    """

    name: str
    title: str
    formula: str
    needs: str
    source: str
    scale: Literal["as is", "log odds", "−log"] = "as is"
    function: Callable[[Logits], Values] | None = None
    is_scaled: bool = False

    def read(self, values: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Return the quantity of ``formula`` for values of this score; it may tie where they do not."""
        numbers = values.astype(np.float64)
        if self.scale == "log odds":
            return 0.5 * (1 + np.tanh(numbers / 2))  # the logistic function, without overflow
        return np.exp(-numbers) if self.scale == "−log" else numbers


_SOURCES = {
    "msr": "Hendrycks & Gimpel 2017",
    "max_logit": "Hendrycks et al. 2022",
    "predictive_entropy": "Shannon 1948",
    "energy": "Liu et al. 2020",
    "margin": "Scheffer et al. 2001",
    "dropout": "Gal & Ghahramani 2016",
    "ensemble": "Lakshminarayanan et al. 2017",
}


def _from_logits() -> list[ConfidenceScore]:
    """Return the scores of logits, and after temperature scaling those whose ranking it changes."""
    plain = [
        ConfidenceScore(
            "msr", "maximum softmax response", "max p", "logits", _SOURCES["msr"], "log odds", compute_msr
        ),
        ConfidenceScore(
            "max_logit", "maximum logit", "max f", "logits", _SOURCES["max_logit"], function=compute_max_logit
        ),
        ConfidenceScore(
            "predictive_entropy", "predictive entropy", "−Σ p·log p, less of it is more confident", "logits",
            _SOURCES["predictive_entropy"], "−log", compute_predictive_entropy,
        ),
        ConfidenceScore("energy", "energy", "log Σ exp(f)", "logits", _SOURCES["energy"], function=compute_energy),
        ConfidenceScore(
            "margin", "margin", "(1 + p₁ − p₂)/2, of the two largest probabilities", "logits", _SOURCES["margin"],
            "log odds", compute_margin,
        ),
    ]  # fmt: skip
    scaled = [
        ConfidenceScore(
            f"{score.name}_scaled", f"{score.title} after temperature scaling", f"{score.formula}; logits divided by T",
            score.needs, score.source, score.scale, score.function, is_scaled=True,
        )
        for score in plain
        if score.name != "max_logit"
    ]  # fmt: skip
    return plain + scaled


def _from_members(prefix: str, title: str, needs: str, source: str) -> list[ConfidenceScore]:
    """Return the scores of several predictions of one image, p̄ their mean."""
    rows: list[tuple[str, str, str, Literal["log odds", "−log"]]] = [
        ("msr", "MSR", "max p̄", "log odds"),
        ("entropy", "predictive entropy", "−Σ p̄·log p̄, less of it is more confident", "−log"),
        ("expected_entropy", "expected entropy", "mean of −Σ p·log p, less of it is more confident", "−log"),
        (
            "mutual_information", "mutual information",
            "predictive entropy − expected entropy, less of it is more confident", "−log",
        ),
    ]  # fmt: skip
    return [
        ConfidenceScore(
            f"{prefix}_{name}", f"{title}, {words}", formula, needs.format(name=f"{prefix}_{name}"), source, scale
        )
        for name, words, formula, scale in rows
    ]


#: Mean over the pixels of a map of uncertainties (``segmentation_ood.aggregations``) → its title.
AGGREGATIONS = {
    "image": "whole image",
    "foreground": "predicted foreground",
    "worst_patch": "worst patch",
    "boundary_excluded": "away from boundaries",
}


def _from_the_model() -> list[ConfidenceScore]:
    """Return the scores that only the model can give: of its samples under dropout, and of its own confidence."""
    stored = "scores/{name}"
    return [
        *_from_members("mc_dropout", "MC dropout", stored, _SOURCES["dropout"]),
        ConfidenceScore(
            "mc_dropout_score_variance", "MC dropout, score variance",
            "mean over classes of the standard deviation of p over samples, less of it is more confident",
            "scores/mc_dropout_score_variance", _SOURCES["dropout"], "−log",
        ),
        ConfidenceScore(
            "mc_dropout_waic", "MC dropout, WAIC",
            "1 − (max p̄ − standard deviation over samples of that class's p), less of it is more confident",
            "scores/mc_dropout_waic", "Choi et al. 2018", "−log",
        ),
        ConfidenceScore(
            "confidnet", "ConfidNet", "true-class probability as a second network estimates it", "scores/confidnet",
            "Corbière et al. 2019", "log odds",
        ),
        ConfidenceScore(
            "devries", "learned confidence", "confidence that the network states beside its prediction",
            "scores/devries", "DeVries & Taylor 2018", "log odds",
        ),
        ConfidenceScore(
            "deep_gamblers", "Deep Gamblers", "1 − probability of the reservation", "scores/deep_gamblers",
            "Liu et al. 2019", "log odds",
        ),
    ]  # fmt: skip


def _from_features() -> list[ConfidenceScore]:
    """Return the detectors that are fitted on the features of the training split (``ood``)."""
    return [
        ConfidenceScore(
            "mahalanobis", "Mahalanobis distance", "−min over classes of (z − μ_c)ᵀ Σ⁻¹ (z − μ_c)", "features",
            "Lee et al. 2018",
        ),
        ConfidenceScore(
            "relative_mahalanobis", "relative Mahalanobis distance",
            "−min over classes of the distance to the class less that to all images together", "features",
            "Ren et al. 2021",
        ),
        ConfidenceScore(
            "knn", "deep nearest neighbours", "−distance of z/‖z‖ to its k-th nearest training image", "features",
            "Sun et al. 2022",
        ),
        ConfidenceScore(
            "vim", "ViM", "log Σ exp(f) − α·‖z outside the principal space of training‖", "features",
            "Wang et al. 2022",
        ),
        ConfidenceScore(
            "mahalanobis_layers", "Mahalanobis distance of several layers",
            "mean over layers of the Mahalanobis score in standard deviations of validation", "layers",
            "Lee et al. 2018",
        ),
        ConfidenceScore(
            "spectral_signature", "spectral signature",
            "−distance of log(s)/‖log(s)‖ to the nearest training image, s the singular values of a layer", "layers",
            "Karimi & Gholipour 2022",
        ),
        ConfidenceScore(
            "intensity_histogram", "intensity histogram", "−distance of the histogram to the nearest training image",
            "images", "Vasiliuk et al. 2023",
        ),
    ]  # fmt: skip


#: Name → confidence score: of logits, of several models, of the model itself, of features.
CONFIDENCE_SCORES: dict[str, ConfidenceScore] = {
    score.name: score
    for score in (
        *_from_logits(),
        *_from_members("ensemble", "deep ensemble", "members", _SOURCES["ensemble"]),
        ConfidenceScore(
            "pairwise_dice",
            "pairwise Dice",
            "mean over pairs of members and foreground classes of the Dice between their segmentations",
            "members",
            "Roy et al. 2019",
        ),
        *_from_the_model(),
        *_from_features(),
    )
}


#: Scores of the pixels of one pass, which segmentations have in all ``AGGREGATIONS``.
OF_PIXELS = ("msr", "predictive_entropy", "energy", "margin")
#: Scores of what is recorded of layers and images, which segmentations have of unshifted images.
OF_LAYERS = ("spectral_signature", "mahalanobis", "knn", "intensity_histogram")


def list_segmentation_scores(layers: Sequence[str]) -> list[str]:
    """Return the names of the scores that a trial on segmentations has, as in headline numbers.

    Args:
        layers: ``evaluation.store_layers``, each of which has a spectral signature, and all together.
    """
    of_layers = (f"spectral_signature.{layer}" for layer in (*layers, "all")) if layers else ()
    return [*(f"{score}.{part}" for score in OF_PIXELS for part in AGGREGATIONS), *OF_LAYERS, *of_layers]


def split_score(name: str) -> tuple[str, str]:
    """Return the score and its aggregation or layer: of ``predictive_entropy.foreground`` that is its second half.

    It is "" where there is none.

    Args:
        name: name as in headline numbers, or with a slash instead of the first dot.
    """
    score, _, part = name.replace("/", ".").partition(".")
    return (score, part) if score in CONFIDENCE_SCORES else (name, "")


def find_title(name: str) -> str:
    """Return the title of a score in a sentence, with that of its aggregation or the name of its layer.

    ``pytorch_ood.SHE`` of a detector of that package is its class.
    """
    score, part = split_score(name)
    if score not in CONFIDENCE_SCORES:
        return name.replace("pytorch_ood.", "pytorch-ood ")
    title = CONFIDENCE_SCORES[score].title
    return f"{title}, {AGGREGATIONS.get(part, part)}" if part else title


def compute_confidence(
    name: str, logits: Float[np.ndarray, "*shifts n classes"], *, temperature: float | None = None
) -> Float64[np.ndarray, "*shifts n"]:
    """Return a score of logits for every image.

    Args:
        name: name in ``CONFIDENCE_SCORES`` of a score that has a function.
        logits: unnormalised outputs, of one or of several shifts.
        temperature: T > 0 of validation (``validation_fit.fit_temperature``), for scores ``…_scaled``.

    Raises:
        ConfigError: if there is no such score, it does not come from logits, or it lacks the temperature.
    """
    known = [score.name for score in CONFIDENCE_SCORES.values() if score.function is not None]
    score = CONFIDENCE_SCORES.get(name)
    if score is None or score.function is None:
        reason = "which the table does not have" if score is None else f"which needs {score.needs}"
        raise ConfigError(f"computed the confidence {name!r} from logits, {reason}; expected one of {', '.join(known)}")
    if score.is_scaled and temperature is None:
        raise ConfigError(
            f"computed the confidence {name!r} without a temperature; expected that of validation: where no finite one "
            f"is best there, {name!r} is undefined"
        )
    rows = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    if score.is_scaled and temperature is not None:
        rows = rows / temperature
    return score.function(rows).reshape(logits.shape[:-1])


def compute_aurc(confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]) -> float:
    """Return the area under the risk–coverage curve, in [0, 1]; lower is better.

    Perfect ranking at an error rate e: e + (1 − e)·ln(1 − e); a constant: e.

    Args:
        confidence: higher where a prediction is trusted more; equal values are one point of the curve.
        is_correct: whether each prediction is right.

    Raises:
        DataError: if there are no images, lengths differ, or a confidence is NaN.

    Source: Geifman & El-Yaniv 2017; trapezoids between thresholds as in fd-shifts.
    """
    return float(risk_coverage.measure_aurc(risk_coverage.count_errors(confidence, is_correct)))


def compute_eaurc(confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]) -> float:
    """Return AURC less that of a perfect ranking at the same error rate; lower is better, 0 is perfect.

    Ties can make it negative: between two thresholds the trapezoid lies below the curve of a perfect ranking.
    Arguments and errors are those of ``compute_aurc``.

    Source: Geifman et al. 2019.
    """
    return float(risk_coverage.measure_eaurc(risk_coverage.count_errors(confidence, is_correct)))


def compute_augrc(confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]) -> float:
    """Return the area under the generalised risk (wrong and kept, of all images) over coverage, in [0, ½].

    Lower is better. Perfect ranking at an error rate e: e²/2; a constant: e/2. It is the mean risk of a silent failure
    over all thresholds. Arguments and errors are those of ``compute_aurc``.

    Source: Traub et al. 2024.
    """
    return float(risk_coverage.measure_augrc(risk_coverage.count_errors(confidence, is_correct)))

"""Interval of a paired difference over trainings and patients, from variance components, on plain arrays.

R replicates of two arms are tested on the same P patients, so that every replicate is crossed with every patient. The
mean difference D then varies because other trainings (*replicates*), other patients, and other pairs of both (the
*residual*) could have been observed. Each part is estimated, and Student's t takes the degrees of freedom of their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Metric → number of replicates → fewest patients for which the measured coverage is 93 to 97 %. ECE has none: chance
#: adds to it in either arm, but not equally. Intervals are too wide at 50 and 200 patients, miss the truth at 2,000.
FEWEST_PATIENTS: dict[str, dict[int, float]] = {
    "accuracy": {5: 50, 6: 50, 8: 50, 12: 50},
    "balanced_accuracy": {5: 50, 6: 50, 8: 50, 12: 50},
    "auroc": {5: 200, 6: 200, 8: 200, 12: 200},
    "ece": dict.fromkeys((5, 6, 8, 12), np.inf),
}


@dataclass(frozen=True)
class Components:
    """Variances of one mean difference over replicates and patients, in squared units of the metric.

    Attributes:
        mean: the difference, mean over replicates.
        between_replicates: variance between the replicates' differences divided by R: replicate and residual part.
        between_patients: variance of the mean over replicates if the patients are drawn again: patient and residual.
        residual: the part that both hold.
        num_replicates: R.
        num_patients: P.
    """

    mean: float
    between_replicates: float
    between_patients: float
    residual: float
    num_replicates: int
    num_patients: int

    @property
    def variance(self) -> float:
        """Variance of the mean; a component of replicates or patients that is estimated below 0 counts as 0."""
        return max(self.between_replicates, self.residual) + max(self.between_patients, self.residual) - self.residual

    @property
    def df(self) -> float:
        """Degrees of freedom of the variance; R − 1 if it is 0.

        Source: Satterthwaite 1946, eq. 17, for the mean squares of a two-way random-effects model.
        """
        replicates, patients = self.num_replicates - 1, self.num_patients - 1
        parts = [(self.between_replicates, replicates), (self.between_patients, patients)]
        parts = [(part, df) for part, df in parts if part > self.residual]
        if len(parts) != 1:  # with one component at 0, the residual is in the other part, and added nowhere else
            parts.append((self.residual, replicates * patients))
        below = sum(part**2 / df for part, df in parts)
        return self.variance**2 / below if below > 0 else float(replicates)

    @property
    def replicate_sd(self) -> float:
        """Standard deviation of the difference between trainings, had they been tested on all patients there are."""
        return float(np.sqrt(max(self.between_replicates - self.residual, 0) * self.num_replicates))

    @property
    def patient_sd(self) -> float:
        """Standard deviation of the difference between patients, averaged over all trainings there could be."""
        return float(np.sqrt(max(self.between_patients - self.residual, 0) * self.num_patients))

    @property
    def residual_sd(self) -> float:
        """Standard deviation of what is left for one training and one patient."""
        return float(np.sqrt(self.residual * self.num_replicates * self.num_patients))


@dataclass(frozen=True)
class PatientInterval:
    """Student's t interval of a difference over replicates and patients."""

    low: float
    high: float
    df: float
    components: Components
    level: float = 0.95


def estimate_components_of_means(
    values: Float[np.ndarray, "replicates images"], patients: Int64[np.ndarray, " images"]
) -> Components:
    """Return the components of the mean of per-image differences, in which a patient of more images weighs more.

    For patients of equally many images these are the estimates from the mean squares of the two-way analysis of
    variance: (MS_R + MS_P − MS_E) / (R·P) is the variance of the mean.

    Args:
        values: treatment − control, per replicate and image.
        patients: index of each image's patient, 0 to P − 1.

    Raises:
        ValueError: fewer than two replicates or patients, or not one patient per image.

    Source: Searle, Casella & McCulloch 1992, section 4.3 (two-way random model); Cochran 1977, section 2.11 (a ratio of
    sums over clusters of different sizes, linearised).
    """
    _check(values, patients)
    num_patients = int(patients.max()) + 1
    differences = values.mean(axis=1)
    sums = sum_by_patient(values - differences[:, None], patients, num_patients) / values.shape[1]
    return _split(differences, sums * np.sqrt(num_patients / (num_patients - 1)), num_patients)


def estimate_components_of_resamples(
    differences: Float[np.ndarray, " replicates"],
    resampled: Float[np.ndarray, "replicates resamples"],
    num_patients: int,
) -> Components:
    """Return the components of the mean of any metric's differences; the patients' part is a bootstrap's.

    Args:
        differences: treatment − control of the metric, per replicate.
        resampled: the same on bootstrap resamples of the patients, the same patients for all replicates
            (``patient_resampling``); resamples on which the metric is undefined are left out beforehand.
        num_patients: number of patients.

    Raises:
        ValueError: fewer than two replicates, patients or resamples.
    """
    if len(differences) < 2 or num_patients < 2 or resampled.shape[1] < 2:
        raise ValueError(
            f"got {len(differences)} replicates, {num_patients} patients and {resampled.shape[1]} resamples; variance "
            "components need two of each"
        )
    num_resamples = resampled.shape[1]
    centred = (resampled - resampled.mean(axis=1, keepdims=True)) / np.sqrt(num_resamples - 1)
    return _split(differences, centred, num_patients)


def sum_by_patient(
    values: Float[np.ndarray, "rows images"], patients: Int64[np.ndarray, " images"], num_patients: int
) -> Float[np.ndarray, "rows patients"]:
    """Return the sums of values over the images of each patient."""
    if len(patients) == num_patients and (patients[1:] > patients[:-1]).all():
        return values  # one image each, in order
    index = np.arange(len(values))[:, None] * num_patients + patients
    sums = np.bincount(index.ravel(), weights=values.ravel(), minlength=len(values) * num_patients)
    return sums.reshape(len(values), num_patients)


def compute_interval(components: Components, *, level: float = 0.95) -> PatientInterval:
    """Return the t interval of the mean difference with Satterthwaite's degrees of freedom; no width if nothing varies.

    Its coverage is 93 to 97 % where ``is_covered`` says so.
    """
    from scipy.special import stdtrit

    half = float(stdtrit(components.df, (1 + level) / 2)) * components.variance**0.5
    return PatientInterval(components.mean - half, components.mean + half, components.df, components, level)


def compute_p(components: Components, value: float = 0.0) -> float:
    """Return the two-sided p-value of the hypothesis that the true difference is ``value``, as by ``compute_interval``.

    Without any variance it is 0, or 1 if the difference is exactly ``value``.
    """
    from scipy.special import stdtr

    distance = abs(components.mean - value)
    if not components.variance:
        return 0.0 if distance else 1.0
    return 2 * float(stdtr(components.df, -distance / components.variance**0.5))


def is_covered(metric: str, *, num_replicates: int, num_patients: int, num_rarest: int) -> bool:
    """Return whether a nominal 95 % interval of this metric holds the true difference in 93 to 97 % of studies.

    Measured at 5, 6, 8 and 12 replicates and 50, 200 and 2,000 patients of two classes, 30 % of them of the rarer one
    (``benchmarks/patients.py``; table in ``docs/statistics.md``). Between two measured numbers of replicates both must
    hold; more than 12 count as 12.

    Args:
        metric: a metric that is not in the table is not covered.
        num_replicates: number of paired replicates.
        num_patients: number of patients.
        num_rarest: number of patients of the rarest class; if it is less than 30 %, fewer patients count for the
            metrics that are made of classes.
    """
    fewest = FEWEST_PATIENTS.get(metric, {})
    near = [number for number in fewest if number <= num_replicates][-1:]
    near += [number for number in fewest if number >= num_replicates][:1]
    counted = min(num_patients, num_rarest / 0.3) if metric in {"balanced_accuracy", "auroc"} else num_patients
    return num_replicates >= min(fewest, default=np.inf) and all(counted >= fewest[number] for number in near)


def _split(differences: Array, deviations: Array, num_patients: int) -> Components:
    """Return the components; the squares of the deviations of a replicate add up to its variance over patients."""
    num_replicates = len(differences)
    mean = deviations.mean(axis=0)
    residual = np.square(deviations - mean).sum() / (num_replicates * (num_replicates - 1))
    return Components(
        mean=float(differences.mean()),
        between_replicates=float(differences.var(ddof=1) / num_replicates),
        between_patients=float(np.square(mean).sum()),
        residual=float(residual),
        num_replicates=num_replicates,
        num_patients=num_patients,
    )


def _check(values: Array, patients: Int64[np.ndarray, " images"]) -> None:
    if values.shape[1] != len(patients):
        raise ValueError(f"got {len(patients)} patients' indices for {values.shape[1]} images; give one per image")
    if len(values) < 2 or patients.max() < 1:
        raise ValueError(
            f"got {len(values)} replicates and {int(patients.max()) + 1} patients; variance components need two of each"
        )

"""Metrics of a pretraining: what a contrastive one records per epoch, and what remains of a supervised one.

Features are the encoder's, embeddings the projection head's. ``result.json`` has the last value of each, as
``ssl/final_<name>``. No search or selection of trials sees them. Of a step on the study's own images, the first source
is the study's data, whose validation images are in-distribution. An unlabelled folder has training images only.
"""

from __future__ import annotations

import math

from trainables.evaluation.metric_tables.metric import Metric

_VALIDATION = "validation images of the step's first source; measured after at most ten epochs and the last"
_BATCHES = "two views of every image"


def _rank(name: str, title: str, formula: str, needs: str, source: str) -> Metric:
    return Metric(
        name, title, formula, higher_is_better=True, low=1.0, high=math.inf, needs=needs, source=source,
    )  # fmt: skip


#: Name → metric, in the order of a record.
STAGE_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "ssl/loss", "loss of the method",
            "mean over batches: NT-Xent (simclr), InfoNCE of key against queue (moco), 4 − 2·cos − 2·cos (byol)",
            higher_is_better=False, low=0.0, high=math.inf, needs=_BATCHES,
            source="Chen et al. 2020; He et al. 2020; Grill et al. 2020",
        ),
        *(
            Metric(
                f"ssl/{part}_spread", f"spread of {part}s",
                f"root mean squared distance of a batch's normalised {part}s from their mean; 0: one point",
                higher_is_better=True, low=0.0, high=1.0, needs=_BATCHES, source="Chen & He 2021",
            )
            for part in ("feature", "embedding")
        ),
        *(
            _rank(
                f"ssl/{first}{part}_rank", f"rank of {part}s{' at the start' if first else ''}",
                "exp of the entropy of the singular values, as shares, of "
                f"{'the first' if first else 'an epoch’s last'} batch's normalised {part}s minus their mean",
                _BATCHES, "Roy & Vetterli 2007",
            )
            for first in ("", "first_")
            for part in ("feature", "embedding")
        ),
        Metric(
            "ssl/collapsed", "collapsed",
            "1 if a rank is below 3 where 6 are possible, or below half of the start's while the loss is that of "
            "guessing (1 % less counts, too), else 0; one point for all images ends the stage",
            higher_is_better=False, low=0.0, high=1.0, needs=_BATCHES, source="Jing et al. 2022",
        ),
        Metric(
            "ssl/knn_accuracy", "kNN accuracy",
            "share of validation images whose class the 20 training images of highest cosine similarity s vote for, "
            "each by exp(s/.07)",
            higher_is_better=True, low=0.0, high=1.0, needs=f"labels; {_VALIDATION}", source="Wu et al. 2018",
        ),
        Metric(
            "ssl/alignment", "alignment", "mean squared distance between normalised features of two views of an image",
            higher_is_better=False, low=0.0, high=4.0, needs=_VALIDATION, source="Wang & Isola 2020",
        ),
        Metric(
            "ssl/uniformity", "uniformity",
            "log of the mean of exp(−2·d²) over pairs of training images, d the distance of normalised features",
            higher_is_better=False, low=-8.0, high=0.0, needs="two training images", source="Wang & Isola 2020",
        ),
        _rank(
            "ssl/rankme", "RankMe",
            "exp of the entropy of the singular values, as shares, of training images' features",
            "training images", "Garrido et al. 2023",
        ),
        _rank(
            "ssl/lidar", "LiDAR",
            "exp of the entropy of the eigenvalues, as shares, of the covariance of images' mean features whitened by "
            "that of the views of an image",
            f"four views of each image; {_VALIDATION}", "Thilak et al. 2024",
        ),
    )
}  # fmt: skip

#: The same of a supervised step, of its last epoch; only ``result.json`` has them.
SUPERVISED_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "supervised/final_loss", "training loss", "mean cross-entropy of the training images' batches",
            higher_is_better=False, low=0.0, high=math.inf, needs="labels of the step's source",
        ),
        Metric(
            "supervised/val_balanced_accuracy", "balanced accuracy on validation",
            "unweighted mean of the recall of each class",
            higher_is_better=True, low=0.0, high=1.0, needs="validation images of the step's source",
        ),
    )
}  # fmt: skip

"""Report section: the words of the page, each in a sentence."""

from __future__ import annotations

from orchestrator.report.page import Section, facts
from orchestrator.statistics.intervals import MIN_REPLICATES

_WORDS = {
    "arm": "One combination of choices, e.g. ImageNet weights with strong augmentation.",
    "replicate": "One repetition of every arm with a seed of its own; its split, initialisation and batch order are "
    "the same for all arms.",
    "trial": "One training and its evaluation: one arm in one replicate.",
    "unit": "What counts once in an interval or p-value: a replicate, or the replicates that share a pretrained "
    "encoder.",
    "shift": "A change of the test images, e.g. noise or blur, or a set from another source.",
    "severity": "Strength of a shift, from 1 to 5 unless the study says otherwise; 0 is the unshifted test set.",
    "mean shifted": "Mean over severities, then over the types of shift: each type counts once.",
    "worst shift": "Mean over severities under the shift type that costs a trial most.",
    "seen, unseen": "A shift is seen if the training augmentation contains a change of its kind.",
    "balanced accuracy": "Mean over classes of the share of their images that is recognised.",
    "AUROC": "Probability that an image of a class gets a higher score for it than one of another class; mean over "
    "classes.",
    "Dice": "Twice the pixels that truth and prediction have in common, over the pixels of both; mean over cases, then "
    "over classes.",
    "case": "One image of a segmentation.",
    "ECE": "Expected calibration error: how far confidence and accuracy are apart; lower is better.",
    "chance": "Score of guessing: 1 / number of classes for balanced accuracy, 50 % for AUROC. Accuracy and ECE have "
    "none that holds for every set.",
    "validation": "Images that choose an arm; test images never do. A choice by test images is called oracle.",
    "95 % interval": f"Student’s t interval over units: what other seeds would give on these images. It takes "
    f"{MIN_REPLICATES} units.",
    "points": "Differences of percentages: from 80 % to 83 % is 3 points.",
    "supported": "The effect has the claimed direction and is larger than the claimed size, by the corrected p-values.",
    "supported (direction)": "The direction is shown, the claimed size is not.",
    "not supported": "Neither is shown; that is no proof of equality.",
    "contradicted": "The opposite direction is shown, or that the effect is smaller than claimed.",
    "not enough data": "Too few independent units, or planned pairs are missing.",
    "no verdict": "The hypothesis is about shifts, which are not independently trained: only described.",
}


#: Words that only the pages of one task have.
_OF_TASK = {"classification": ("balanced accuracy", "AUROC", "chance"), "segmentation": ("Dice", "case")}


def glossary_section(task: str) -> Section:
    """Return the section that explains the words of the page.

    Args:
        task: classification or segmentation.
    """
    others = {word for name, words in _OF_TASK.items() if name != task for word in words}
    shown = {word: meaning for word, meaning in _WORDS.items() if word not in others}
    return Section("glossary", "Glossary", "What the words mean", facts(shown))

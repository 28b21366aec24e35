"""Items of the checklists, in our own words, with what a study can say about each and what its author has to write."""

from __future__ import annotations

from typing import NamedTuple

#: Remark of an item that the author answers alone.
ALL = "all of it"


class Item(NamedTuple):
    """One item of a checklist."""

    number: str
    #: What the item asks for.
    asks: str
    #: Names of facts in ``checklist.FACTS`` that answer it, as far as the study has them.
    facts: tuple[str, ...] = ()
    #: What the author has to write even if the study has all these facts; "" for nothing.
    author: str = ""


CLAIM = (
    Item("1", "What is claimed, in words", ("claims",)),
    Item("2", "What is compared with what", ("compared",)),
    Item("3", "Metric, claimed direction and size", ("metrics",)),
    Item("4", "How many models were trained, and how many are missing", ("trainings", "left_out")),
    Item("5", "How the images were split", ("split", "groups")),
    Item("6", "How many patients the models were tested on", ("patients",)),
    Item("7", "How many sites the models were tested on", ("sites", "external")),
    Item("8", "How much each arm was tuned, with what budget and on which data", (), ALL),
    Item("9", "Whether the claim was written before the results", ("registration",)),
    Item("10", "What the test counts", ("units",)),
    Item("11", "How p-values are corrected for several claims", ("correction",)),
    Item("12", "What differs between the sides besides what is named", ("differences",)),
    Item("13", "Effect, interval and verdict", ("effects",)),
    Item("14", "Which of the shifts the training has seen", (), ALL),
    Item("15", "How the epoch that is evaluated was chosen", ("selection",)),
    Item("16", "Data, code and versions with which it can be repeated", ("versions", "data_fingerprint")),
)

#: Collins et al. 2024, TRIPOD+AI statement, BMJ 385:e078378: its numbers, our words.
TRIPOD_AI = (
    Item("1", "Title: development or evaluation, population, outcome", (), ALL),
    Item("2", "Abstract, after the checklist for abstracts", (), ALL),
    Item("3a", "Clinical context, and why the model is needed", (), ALL),
    Item("3b", "Whom the model is for, its place in care, its users", (), ALL),
    Item("3c", "Known inequalities between groups of people", (), ALL),
    Item("4", "Objectives", ("question", "claims"), "whether a model is developed, evaluated, or both"),
    Item("5a", "Sources of the data, and how representative they are", ("data",), "origin, choice, representativeness"),
    Item("5b", "Dates of recruitment and follow-up", (), ALL),
    Item("6a", "Setting, number and place of centres", ("sites", "external"), "setting and places"),
    Item("6b", "Who was eligible", (), ALL),
    Item("6c", "Treatments received", (), ALL),
    Item("7", "Preparation of the data and checks of their quality", ("images",), "what was done before, by group"),
    Item("8a", "The outcome: definition, time, assessment", ("classes",), "definition, time, assessment"),
    Item("8b", "Who assessed the outcome, if that is a judgement", (), ALL),
    Item("8c", "Whether the assessment was blinded", (), ALL),
    Item("9a", "How the predictors were chosen", (), ALL),
    Item("9b", "Definition of the predictors, and how they were measured", (), ALL),
    Item("9c", "Who assessed the predictors, if that is a judgement", (), ALL),
    Item("10", "How the size of the study was chosen", ("trainings",), "why this many patients and trained models"),
    Item("11", "What was done about missing data", ("left_out", "images"), "data missing at the source"),
    Item("12a", "How the data were divided and used", ("split", "groups"), "why in this way"),
    Item("12b", "How predictors were transformed", ("conversions",), "reasons"),
    Item("12c", "Kind of model, how it was built, tuned and validated", ("models", "selection"), "reasons, tuning"),
    Item("12d", "How differences between clusters were handled", ("external", "groups"), "the analysis by cluster"),
    Item("12e", "Measures and figures of performance, and comparisons", ("measures", "metrics"), "reasons"),
    Item("12f", "Updates of the model", (), ALL),
    Item("12g", "How predictions were computed", ("versions",), "where the model can be had"),
    Item("13", "What was done about unequal classes", ("class_weights",), "reasons, recalibration"),
    Item("14", "What was done for fairness", (), ALL),
    Item("15", "What the model returns, and thresholds", ("classes",), "kind of output, thresholds and reasons"),
    Item("16", "How evaluation data differ from training data", ("external",), "setting, eligibility, outcome"),
    Item("17", "Ethical approval and consent", (), ALL),
    Item("18a", "Funding", (), ALL),
    Item("18b", "Conflicts of interest", (), ALL),
    Item("18c", "Where the protocol is", ("registration", "study_file"), "where others can read it"),
    Item("18d", "Registration of the study", (), ALL),
    Item("18e", "Whether the data are shared", (), ALL),
    Item("18f", "Whether the code is shared", ("versions",), "where the code can be had"),
    Item("19", "How patients and the public were involved", (), ALL),
    Item(
        "20a", "Flow of participants, with and without the outcome", ("split", "patients"), "flow, numbers by outcome"
    ),
    Item("20b", "Characteristics of the participants, by source", (), ALL),
    Item("20c", "Distribution in evaluation data beside that in training data", (), ALL),
    Item("21", "Participants and events in each analysis", ("split", "patients"), "numbers of events"),
    Item("22", "The whole model, so that others can use it", ("models",), "where the model can be had, restrictions"),
    Item("23a", "Performance with intervals, also for subgroups", ("effects", "arms"), "subgroups of people"),
    Item("23b", "Performance by cluster", ("external",), "heterogeneity and its cause"),
    Item("24", "Results of updates", (), ALL),
    Item("25", "Interpretation, fairness included", (), ALL),
    Item("26", "Limitations", ("left_out", "differences"), "what they mean for the conclusions"),
    Item("27a", "What to do about poor or missing input in use", (), ALL),
    Item("27b", "What users have to do and to know", (), ALL),
    Item("27c", "Next steps", (), ALL),
)

#: Name of a checklist → title and items.
CHECKLISTS = {
    "claim": ("Checklist for a claim of outperformance", CLAIM),
    "tripod-ai": ("TRIPOD+AI (2024), items in short", TRIPOD_AI),
}

"""Headline numbers of the label maps that the trials of a study were evaluated with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trainables.evaluation.metric_tables.views import is_of_class, split_view


def list_label_maps(columns: Iterable[str]) -> list[str]:
    """Return the names of the label maps that a trials table has numbers of."""
    parts = [split_view(column) for column in columns]
    views = dict.fromkeys(view for view, within in parts if within.startswith("id/"))
    return [view for view in views if view and not is_of_class(view)]


def describe_label_maps(columns: Iterable[str], metric: str, title: str) -> Iterator[tuple[str, str, str]]:
    """Yield column, title and short title of a metric in distribution and over shifts, for each label map."""
    for name in list_label_maps(columns):
        yield f"{name}/id/{metric}", f"in-distribution {title} of {name}", f"{name}: in-distribution test"
        yield f"{name}/robustness/mean_{metric}", f"mean shifted {title} of {name}", f"{name}: mean shifted"

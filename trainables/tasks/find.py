"""The task of a configuration."""

from __future__ import annotations

from trainables.task_config import SegmentationTask, TaskConfig
from trainables.tasks.task import Task


def find_task(config: TaskConfig) -> Task:
    """Return the task that a trial has; only its own module is imported."""
    if isinstance(config, SegmentationTask):
        from trainables.tasks.segmentation import Segmentation

        return Segmentation(config)
    from trainables.tasks.classification import Classification

    return Classification()

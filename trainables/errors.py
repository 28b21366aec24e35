"""Hierarchy of the errors that this package raises on purpose.

RobustSweepError
├── ConfigError            a setting is impossible or does not fit the data or model
├── DataError              an image, a label, a manifest or a split is unusable
├── WeightsUnavailableError  pretrained weights cannot be reached
├── CheckpointError        a checkpoint is damaged or belongs to another trial
├── DivergedError          the loss is not finite
├── CollapsedError         a contrastive pretraining maps all images to the same point
├── SupersededError        a newer attempt at the same stage or trial has taken over
├── StorageError           the ledger cannot be read or written
│   └── DiskFullError      no space is left on the disk; the trial is not at fault
├── InfrastructureError    Ray cannot be reached, or a trial's process was lost       (orchestrator)
│   ├── ClusterLostError   the head of the Ray cluster is gone                        (orchestrator)
│   ├── PeerLostError      another process of the same stage is gone
│   └── OrphanedError      nobody has asked for a trial's events for long              (orchestrator)
└── StudyError             the study file, or a request about it, is wrong   (orchestrator)
    └── LeaseError         another driver holds the study                    (orchestrator)

Each message states what was attempted, what was found, what was expected and what to do.
"""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """Return ``text`` without the user names, passwords and tokens of the URIs in it."""
    text = re.sub(r"://[^/\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)\b(\w*(?:password|passwd|pwd|token|secret)\w*)=[^&\s'\"]+", r"\1=***", text)


class RobustSweepError(Exception):
    """Base class of all deliberate errors. Messages can be shown to the user as they are: passwords are removed."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ConfigError(RobustSweepError):
    """A setting is impossible, or does not fit the data or the model."""


class DataError(RobustSweepError):
    """Images, labels, a manifest or a split are unusable."""


class WeightsUnavailableError(RobustSweepError):
    """Pretrained weights are neither in a file, nor in the cache, nor downloadable."""


class CheckpointError(RobustSweepError):
    """A checkpoint is damaged, or was written by another trial."""


class DivergedError(RobustSweepError):
    """The training loss became NaN or infinite."""


class CollapsedError(RobustSweepError):
    """A contrastive pretraining maps all images to the same point, and has learned nothing."""


class SupersededError(RobustSweepError):
    """A newer attempt at the same stage or trial has taken over; this one can change nothing any more."""


class StorageError(RobustSweepError):
    """The ledger could not be read or written."""


class DiskFullError(StorageError):
    """No space is left for the data to be written; the same command continues once there is space."""


class InfrastructureError(RobustSweepError):
    """Ray cannot be reached, or the process of a trial was lost; trying again may help."""


class ClusterLostError(InfrastructureError):
    """The head of the Ray cluster is gone; the same command continues with another cluster."""


class PeerLostError(InfrastructureError):
    """Another of the processes that train a stage together is gone; this one can do nothing without it."""


class OrphanedError(InfrastructureError):
    """The driver has not asked for a trial's events for long: its machine was cut off, or the driver is gone."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM has asked this process to stop in order, as a scheduler does; handled wherever Ctrl-C is."""


class StudyError(RobustSweepError):
    """The study file, or a request about it, is wrong."""


class LeaseError(StudyError):
    """Another driver holds the study."""

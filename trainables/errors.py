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
import unicodedata

#: Largest number of characters that are quoted of what another program has answered, and of those looked at for it.
MAX_QUOTED, _MAX_READ = 500, 4000
_UNUSUAL = re.compile(r"[^\n\t -~]")


def make_printable(text: str) -> str:
    """Return ``text`` with characters that would steer a terminal written as escapes, as in ``\\x1b``.

    New lines and tabs stay. Escaped are control and format characters (those that turn the direction of writing, too),
    line separators, and what is no character.
    """
    return _UNUSUAL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    is_shown = character.isprintable() or unicodedata.category(character) == "Zs"
    return character if is_shown else character.encode("unicode_escape").decode("ascii")


def quote_first_line(text: str) -> str:
    """Return the first line of what another program has answered, cut, printable and without passwords."""
    line = text[:_MAX_READ].strip().split("\n", 1)[0]  # cut first: searching megabytes for passwords takes long
    return make_printable(redact(line)[:MAX_QUOTED])


def redact(text: str) -> str:
    """Return ``text`` without the user names, passwords and tokens of the URIs in it."""
    text = re.sub(r"://[^/\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)\b(\w*(?:password|passwd|pwd|token|secret)\w*)=[^&\s'\"]+", r"\1=***", text)


class RobustSweepError(Exception):
    """Base class of all deliberate errors.

    Messages can be shown to the user as they are: passwords are removed, and nothing in them steers a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(make_printable(redact(message)))


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

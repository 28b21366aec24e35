"""A slot for Ray's actors whose trials are acted. In a module of its own, which the actors can import. Tests only."""

from __future__ import annotations

import acting_zygote

from orchestrator.scheduling import Slot


class ActingSlot(Slot):
    """See ``acting_zygote``."""

    command = acting_zygote.COMMAND

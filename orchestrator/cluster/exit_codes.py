"""Exit codes of the commands that run or follow a study. Schedulers and job servers decide by them what to do next."""

from __future__ import annotations

#: All trials are complete; some failed or are missing; the request was wrong; Ray, a disk or a network failed, and the
#: same command may succeed later; the budget is spent, the same command would start nothing; stopped in order by
#: SIGTERM, the same command goes on.
COMPLETE, INCOMPLETE, WRONG_REQUEST, INFRASTRUCTURE, OUT_OF_BUDGET, STOPPED = 0, 1, 2, 3, 4, 5

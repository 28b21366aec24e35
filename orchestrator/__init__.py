"""Plan a study, run its stages and trials, record what happened, and report it."""

"""Stages and trials of a study, their signatures, actions and budget. Pure, except for ``inputs``."""

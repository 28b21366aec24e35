"""Sections ``search`` and ``tuning`` of a study file, and the space of settings that both draw from."""

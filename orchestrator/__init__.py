"""Decide what to run, schedule it, record it, compare it."""

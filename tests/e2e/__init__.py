"""Whole studies, through the command line."""

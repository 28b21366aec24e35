"""Folders on any storage, checkpoints, and the check that a record is complete."""

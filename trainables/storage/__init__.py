"""Folders on any storage, checkpoints, and checks that a record is complete and undamaged."""

"""Data sets: sources, decoding, splits by group, fingerprints, batches."""

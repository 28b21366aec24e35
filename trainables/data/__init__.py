"""Image sources, splits by group, fingerprints, the phantom."""

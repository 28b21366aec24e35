"""Quality of segmentations: per case and class, with misses counted, and calibration of their pixels."""

"""Failure and out-of-distribution detection on plain arrays: areas, operating points, detectors on features."""

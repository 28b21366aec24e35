"""Parts of the table of metrics, which is read from ``trainables.evaluation.metrics``."""

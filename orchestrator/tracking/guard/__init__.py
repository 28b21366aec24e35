"""Limits to what a server of MLflow can make this process do: how much it reads, whom it asks, where it writes."""

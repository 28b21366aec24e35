"""Execution of open stages and trials without Ray: work queue, dispatcher, local executor, fork server."""

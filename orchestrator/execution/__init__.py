"""Open work becomes finished work, without Ray: queue, dispatcher, executors, fork server."""

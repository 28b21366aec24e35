"""Command line: parse arguments, call the packages below, print, and set the exit code."""

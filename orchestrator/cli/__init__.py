"""The command line: parses arguments, calls the packages below, prints, and sets the exit code."""

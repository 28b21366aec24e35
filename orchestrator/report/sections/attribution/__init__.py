"""Report section on where the models look."""

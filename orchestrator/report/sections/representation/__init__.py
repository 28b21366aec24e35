"""Report section on what the layers of trained networks hold, and how alike arms are in it."""

"""Output of a run: its announcements, progress with the time left, and the summary at its end."""

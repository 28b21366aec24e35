"""Commands on the shifts of a study."""

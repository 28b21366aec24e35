"""Several studies side by side: what they share, and differences between their arms."""

"""Commands for studies on clusters: submitting, following and stopping jobs, and what is known of a study's state."""

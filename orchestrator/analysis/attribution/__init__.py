"""Where trained models look: relevance on lesions by arm, and whether methods and metrics agree about it."""

"""Tasks: what a network predicts, how it is trained and evaluated. Everything else is the same for all of them."""

"""A page on which one looks at the failures of trained models, served on this machine or written as one file."""

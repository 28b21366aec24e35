"""Study files to begin with: the shipped examples, and a file written for one's own images."""

"""The page of a comparison of several studies."""

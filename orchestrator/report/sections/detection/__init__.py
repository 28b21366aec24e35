"""Report sections on failures: which confidence score ranks them last, and which detector tells foreign images."""

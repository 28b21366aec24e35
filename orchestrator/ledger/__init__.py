"""What has happened, on storage: one folder per stage or trial, and what is derived from them."""

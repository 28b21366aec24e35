"""Identity of images and of texts: digests of files, exact copies, near-duplicates, spellings of one name."""

"""The report's statistics on results from elsewhere: one CSV file, one row per score."""

"""The process that runs a study, from the study file to the report."""

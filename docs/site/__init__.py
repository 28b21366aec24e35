"""The site: ``python -m docs.site`` builds it into build/docs/site from docs/, the study files and the code."""

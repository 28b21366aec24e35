"""The record of a study on storage: one folder per stage or trial, and which derived data are current."""

"""Analyses of the predictions that trials have stored, image by image."""

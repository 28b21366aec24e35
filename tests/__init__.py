"""Tests: one package per package, ``faults`` injects faults, ``e2e`` runs whole studies."""

"""Study texts on the smallest data: grey digits in ten classes, and a phantom with sites. Tests only."""

from __future__ import annotations

_REST = """\
model: {name: shufflenet_v2_x0_5}
training: {epochs: 2, batch_size: 16}
evaluation: {shifts: [gamma_up], severities: [1]}
"""
DIGITS = "study: s\ndata: {kind: digits, image_size: 8}\n" + _REST
#: Two classes, three sites, one external set.
PHANTOM = (
    "study: s\ndata: {kind: phantom, num_images: 60, num_external_sites: 1, num_external_images: 10, image_size: 16}\n"
    + _REST
)

"""Gradient estimators, and how far they are from what they estimate.

`estimators` has the tables of coefficients, `layered` the one that is not a table, `signal`
measures mean, variance, signal-to-noise ratio and bias of any of them.
"""

from iwae.gradients.estimators import apart, curvature, dreg, dreg_alpha, rws_dreg, stl, tvo_score
from iwae.gradients.layered import gdreg

__all__ = [
    "apart",
    "curvature",
    "dreg",
    "dreg_alpha",
    "gdreg",
    "rws_dreg",
    "stl",
    "tvo_score",
]

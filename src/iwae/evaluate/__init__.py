"""How likely a model makes each held-out example, and which of its latent units it uses.

Everything measured on a split goes through `map_examples`, one number an example, in memory that
does not grow with the split.
"""

from iwae.evaluate.classes import (
    auroc,
    class_log_likelihood_slabs,
    class_log_likelihoods,
    confusion_matrix,
    label_log_probabilities,
    marginal_log_likelihoods,
)
from iwae.evaluate.examples import ExampleFn, gather, map_examples
from iwae.evaluate.information import (
    Estimate,
    GapSplit,
    Information,
    gap_split,
    information,
)
from iwae.evaluate.likelihood import log_likelihood_slabs, log_likelihoods, streamed_bound
from iwae.evaluate.pruning import prune
from iwae.evaluate.units import ActiveUnits, active_units, authors_active_units, layer_terms

__all__ = [
    "ActiveUnits",
    "Estimate",
    "ExampleFn",
    "GapSplit",
    "Information",
    "active_units",
    "auroc",
    "authors_active_units",
    "class_log_likelihood_slabs",
    "class_log_likelihoods",
    "confusion_matrix",
    "gap_split",
    "gather",
    "information",
    "label_log_probabilities",
    "layer_terms",
    "log_likelihood_slabs",
    "log_likelihoods",
    "map_examples",
    "marginal_log_likelihoods",
    "prune",
    "streamed_bound",
]

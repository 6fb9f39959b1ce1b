"""Properly weighted particles: by importance sampling, by annealing, by resampling.

Everything here is of one example; `iwae.evaluation` maps it over a split. BlackJAX is touched in
`kernels` only.
"""

"""Properly weighted particles from importance sampling, annealing and resampling.

Everything here is per example; `iwae.evaluation` maps it over a split. Only `kernels` calls
BlackJAX.
"""

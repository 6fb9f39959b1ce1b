"""Objectives: bounds to maximise, and gradient estimators for them.

`reductions` has the bounds as functions of log weights, `surrogates` what is differentiated in
their place, `gradients` the estimators as tables of coefficients and `layered` the one that is not
a table, `bounds` the objectives of importance samples, `halves` two of them in one, `penalties` KL
warm-up and free bits, and the other files one method each. `declaration` lists the names, without
JAX; `catalogue` makes objectives of them.
"""

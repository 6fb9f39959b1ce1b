"""Objectives: bounds to maximise, and gradient estimators for them.

`reductions` defines the bounds as functions of log weights, and `surrogates` builds what is
differentiated in their place. `gradients` defines the estimators as tables of coefficients;
`layered` holds the one that is not a table. `bounds` makes objectives of importance samples,
`halves` combines two objectives, and `penalties` adds KL warm-up and free bits. The other files
hold one method each. `declaration` lists the names without importing JAX, and `catalogue` turns
them into objectives.
"""

"""Objectives: bounds to maximise, and gradient estimators for them.

`bounds` defines the bounds as functions of log weights, and `surrogates` the functions that are
differentiated in their place. `gradient_estimators` and `score_function` define estimators as
tables of coefficients; `gdreg` has the one that is not a table. `particle_objectives` makes
objectives of importance samples, `halves` combines two objectives, and `penalties` adds KL warm-up
and free bits; all of them make an `objective`. The other files hold one method each. Without
importing JAX, `declaration` lists the names and `compatibility` checks which go together;
`building` turns them into objectives.
"""

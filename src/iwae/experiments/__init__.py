"""Many runs: tasks done here or on a Ray cluster, sweeps, and the cells of published tables.

OUT/NAME/           the run folder of a task (see `iwae.runs`)
OUT/.queue/         locks of tasks and reasons of failures
"""

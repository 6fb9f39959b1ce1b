"""Training: whole epochs in one compiled program, many independently seeded replicates at once.

`optimizers` and `schedules` (of learning rates) make the updates, `steps` the compiled program;
`feed` brings the data to the devices, and `diagnosis` finds what broke a run. `loop` runs from the
first dispatch to the last, and `stages` through all stages.
"""

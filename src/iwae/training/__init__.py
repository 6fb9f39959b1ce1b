"""Training: whole epochs in one compiled program, many independently seeded replicates at once.

`schedules` has the optimisers and learning rates, `steps` the compiled program, `diagnosis` says
what broke, `loop` goes from the first dispatch to the last, `stages` from one stage to the next.
"""

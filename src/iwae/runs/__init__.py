"""Run folders: training that can be stopped and resumed at any time.

RUN/config.toml       the resolved configuration, which trains the same models again
RUN/columns.txt       for a table of more than 30 columns: the kind of each, the reason, its gaps
RUN/metrics.jsonl     one line per logged epoch
RUN/tensorboard/      the same metrics as TensorBoard scalars
RUN/checkpoints/      states to resume the run from (safetensors)
RUN/models/           `final-R` and `best-R` for each replicate R (safetensors)
RUN/frames/           arrays of pictures taken during training
RUN/figures/          figures, written by `iwae figures`
RUN/evaluations/      records and per-example values, written by `iwae evaluate`
RUN/trackers/         ids and steps sent to experiment trackers
"""

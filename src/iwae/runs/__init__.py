"""A run folder: trained models, stopped and resumed at will.

RUN/config.toml       the resolved configuration; trains the same models again
RUN/metrics.jsonl     one line per logged epoch
RUN/tensorboard/      the same as TensorBoard scalars
RUN/checkpoints/      what it takes to resume the run (safetensors)
RUN/models/           `final-R` and `best-R` for each replicate R (safetensors)
RUN/frames/           pictures' arrays through the course of training
RUN/figures/          pictures, written by `iwae figures`
RUN/evaluations/      records and per-example values, written by `iwae evaluate`
RUN/trackers/         what experiment trackers were sent
"""

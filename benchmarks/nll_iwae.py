"""The trainer with an experiment file, as a contestant of `time_to_nll.py`.

Data, models and stages are made as in `iwae train`. Like the loop that it is compared with, it
keeps no checkpoints and no log.

    python benchmarks/nll_iwae.py --config FILE.toml --folder FOLDER
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax

from iwae.config.toml import read_config
from iwae.runs.jobs import initial_job_state, make_job
from iwae.training.replicates import replicate_model, weights_of_replicates
from iwae.training.stages import train_stages
from iwae.training.steps import TrainState
from nll_course import Course, options
from nll_evaluate import dense_layers


def main() -> None:
    """Train until the budget is spent or the stages end."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="an experiment file")
    args = parser.parse_args()
    course, job = Course(args), make_job(read_config(args.config))

    def layers(state: TrainState) -> Iterator[tuple[jax.Array, jax.Array]]:
        model = replicate_model(job.models[0], weights_of_replicates(state), 0)
        yield from ((layer.weight, layer.bias) for layer in dense_layers(model))

    start, best = initial_job_state(job)
    run = train_stages(start, best, job.dataset.train, job.models[0], job.stages, job.plan)
    for state, _, report in run:
        if course.is_over() or report.share == 1:
            break
        if course.is_due():
            course.save(report.epoch, layers(state))
    course.save(report.epoch, layers(state))
    print(f"iwae {version('iwae')}, jax {jax.__version__}")


if __name__ == "__main__":
    main()

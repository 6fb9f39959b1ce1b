"""A plain PyTorch loop by the published recipe, as a contestant of `time_to_nll.py`.

The step is that of `torch_step.py`. Batches of 20, learning rates 0.001 * 10^(-i/7) for 3^i
epochs, i = 0 ... 7; Glorot's initialisation, and the output bias from the means of the pixels.

    python benchmarks/nll_torch.py --data DATA.npz --k 5 --folder FOLDER
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from nll_course import Course, options
from torch_step import BATCH, IWAE, VARIANTS, make_optimiser, make_step, shuffled_batches


def layers(model: IWAE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights [in, out] and biases of the dense layers, in the order of the data."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            yield layer.weight.detach().numpy().T, layer.bias.detach().numpy()


def published_stages(epochs: int) -> list[tuple[int, float]]:
    """Epochs and learning rate of each stage, scaled to `epochs` epochs in total."""
    ends = np.round(np.cumsum([3**i for i in range(8)]) * epochs / 3280).astype(int)
    return [(int(n), 1e-3 * 10 ** (-i / 7)) for i, n in enumerate(np.diff(ends, prepend=0))]


def main() -> None:
    """Train until the budget is spent or the schedule ends."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, required=True, help="samples per example")
    parser.add_argument("--data", required=True, help=".npz with `train` and `output_bias`")
    parser.add_argument("--variant", choices=VARIANTS, default="eager")
    parser.add_argument("--epochs", type=int, default=3280)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    course, model = Course(args), IWAE()
    with np.load(args.data) as data:
        images, bias = torch.from_numpy(data["train"]), torch.from_numpy(data["output_bias"])
    with torch.no_grad():
        model.decoder[-1].bias.copy_(bias)
    optimiser, steps_per_epoch, steps = make_optimiser(model), len(images) // BATCH, 0
    step = make_step(model, optimiser, args.k, args.variant, shuffled_batches(images))
    for epochs, rate in published_stages(args.epochs):
        optimiser.param_groups[0]["lr"] = rate
        for _ in range(epochs * steps_per_epoch):
            if course.is_over():
                break
            step()
            steps += 1
            if course.is_due() and not course.is_over():
                course.save(steps // steps_per_epoch, layers(model))
    course.save(steps // steps_per_epoch, layers(model))
    print(f"torch {torch.__version__}")


if __name__ == "__main__":
    main()

"""The step of an IWAE in plain PyTorch, to compare the trainer with.

One stochastic layer as published (Burda et al. 2016): encoder 784-200-200-(mean, log sd) 50,
decoder 50-200-200-784 logits, tanh, batches of 20 binarised afresh at every step, Adam with
eps 1e-4. It is the code of a careful user of PyTorch: densities by hand rather than through
`torch.distributions` (which is slower), the encoder once per example and not per sample, the fused
Adam, nothing fetched or printed in the loop.

    python benchmarks/torch_step.py --k 5 --variant compiled        # prints one JSON object
    python benchmarks/torch_step.py --k 5000 --evaluate
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from timing import Block, cores, time_blocks

PIXELS, HIDDEN, LATENT = 784, 200, 50
BATCH, IMAGES = 20, 60_000
# Name of a variant -> arguments of torch.compile for the loss; None runs it eagerly.
VARIANTS: dict[str, dict[str, str] | None] = {
    "eager": None,
    "compiled": {"mode": "default"},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}


class IWAE(nn.Module):
    """The one-layer model; `log_weights` are its importance weights in nats."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()
        )
        self.mean = nn.Linear(HIDDEN, LATENT)
        self.log_sd = nn.Linear(HIDDEN, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, PIXELS),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def log_weights(self, x: Tensor, k: int) -> Tensor:
        """Log weights [k, batch] in nats of k samples of q(z|x) for every row of x [batch, 784]."""
        hidden = self.encoder(x)
        mean, log_sd = self.mean(hidden), self.log_sd(hidden)
        noise = torch.randn(k, *mean.shape)
        z = mean + log_sd.exp() * noise
        # log p(z) - log q(z|x): the constants of the two Gaussians cancel.
        log_ratio = (0.5 * (noise.square() - z.square()) + log_sd).sum(-1)
        logits = self.decoder(z)
        losses = functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        )
        return log_ratio - losses.sum(-1)


def loss_of(model: IWAE, images: Tensor, k: int) -> Tensor:
    """Minus the mean of L_k (nats) over a batch of grey images [batch, 784], binarised here."""
    grey = images.float() / 255
    x = (torch.rand_like(grey) < grey).float()
    bound = torch.logsumexp(model.log_weights(x, k), 0) - math.log(k)
    return -bound.mean()


def random_images(n: int = IMAGES) -> Tensor:
    """Random grey images [n, 784], uint8, resident in memory like the training set."""
    return torch.randint(0, 256, (n, PIXELS), dtype=torch.uint8)


def make_optimiser(model: IWAE) -> torch.optim.Optimizer:
    """The paper's Adam, in PyTorch's fastest form."""
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)


def make_step(
    model: IWAE, optimiser: torch.optim.Optimizer, k: int, variant: str, batches: Iterator[Tensor]
) -> Callable[[], Tensor]:
    """A function that takes one training step on the next batch and returns the loss."""
    options = VARIANTS[variant]
    loss_function = loss_of if options is None else torch.compile(loss_of, **options)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = loss_function(model, next(batches), k)
        loss.backward()
        optimiser.step()
        return loss

    return step


def shuffled_batches(data: Tensor, batch: int = BATCH) -> Iterator[Tensor]:
    """Batches of `data` [batch, 784] without end, in a new order every epoch."""
    whole = len(data) - len(data) % batch
    while True:
        yield from map(data.__getitem__, torch.randperm(len(data))[:whole].split(batch))


def time_steps(k: int, variant: str, seconds: float = 3.0, batch: int = BATCH) -> list[Block]:
    """Milliseconds per training step, in several blocks that last `seconds` together."""
    torch.manual_seed(0)
    model, batches = IWAE(), shuffled_batches(random_images(), batch)
    step = make_step(model, make_optimiser(model), k, variant, batches)

    def steps(n: int) -> None:
        for _ in range(n):
            loss = step()
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of the {variant} step is {loss.item()}")

    return time_blocks(steps, seconds=seconds)


@torch.no_grad()
def log_likelihoods(model: IWAE, x: Tensor, k: int, chunk: int = 250) -> Tensor:
    """L_k in nats of every row of x [batch, 784], `chunk` samples at a time."""
    total = torch.full((len(x),), -math.inf)
    for start in range(0, k, chunk):
        log_w = model.log_weights(x, min(chunk, k - start))
        total = torch.logaddexp(total, torch.logsumexp(log_w, 0))
    return total - math.log(k)


def time_evaluation(k: int, seconds: float = 3.0) -> list[Block]:
    """Milliseconds per example of L_k, eager, in batches of four examples."""
    torch.manual_seed(0)
    model, examples = IWAE(), 4
    x = (random_images(examples) > 127).float()

    def evaluate(n: int) -> None:
        for _ in range(n):
            log_likelihoods(model, x, k)

    blocks = time_blocks(evaluate, seconds=seconds, warm_up=2)
    return [Block(block.ms / examples, block.others) for block in blocks]


def main() -> None:
    """Measure one thing in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=5, help="samples per example")
    parser.add_argument("--batch", type=int, default=BATCH, help="examples per step")
    parser.add_argument("--variant", choices=VARIANTS, default="eager")
    parser.add_argument("--evaluate", action="store_true", help="time L_k instead of the step")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        blocks = time_evaluation(args.k, args.seconds)
    else:
        blocks = time_steps(args.k, args.variant, args.seconds, args.batch)
    print(json.dumps({"blocks": blocks, "version": f"torch {torch.__version__}"}))


if __name__ == "__main__":
    main()

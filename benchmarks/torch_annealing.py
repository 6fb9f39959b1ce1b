"""Annealed importance sampling in plain PyTorch, to compare `iwae` with.

HMC along the geometric path from q(z|x) to p(x, z), for the model of `torch_step.py`, as a careful
user of PyTorch would write it: the encoder once per image, no gradients of weights, densities by
hand, one loop over leapfrog steps.

    python benchmarks/torch_annealing.py                            # prints one JSON object
"""

import argparse
import json
import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from timing import Block, cores, time_blocks
from torch_step import IWAE, PIXELS

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


class Path:
    """f_beta(z) = q(z|x)^(1 - beta) p(x, z)^beta for all rows of x [batch, 784]."""

    def __init__(self, model: IWAE, x: Tensor) -> None:
        hidden = model.encoder(x)
        self.model, self.x = model, x
        self.mean, self.log_sd = model.mean(hidden), model.log_sd(hidden)

    def sample(self, chains: int) -> Tensor:
        """Draws of q(z|x), [chains, batch, 50]."""
        return self.mean + self.log_sd.exp() * torch.randn(chains, *self.mean.shape)

    def evaluate(self, z: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """log f_beta, its gradient in z, and log p(x, z) - log q(z|x)."""
        z = z.detach().requires_grad_()
        noise = (z - self.mean) * (-self.log_sd).exp()
        log_q = -(0.5 * noise.square() + self.log_sd + HALF_LOG_TAU).sum(-1)
        logits = self.model.decoder(z)
        losses = binary_cross_entropy_with_logits(
            logits, self.x.expand_as(logits), reduction="none"
        )
        log_p = -losses.sum(-1) - (0.5 * z.square() + HALF_LOG_TAU).sum(-1)
        log_f = (1 - beta) * log_q + beta * log_p
        (gradient,) = torch.autograd.grad(log_f.sum(), z)
        return log_f.detach(), gradient, (log_p - log_q).detach()


def move(path: Path, z: Tensor, beta: float, step_size: float, leapfrog: int) -> Tensor:
    """One HMC move of every chain at f_beta: unit mass, fresh momentum, accept or reject."""
    start, gradient, _ = path.evaluate(z, beta)
    v = torch.randn_like(z)
    end, kinetic = z, 0.5 * v.square().sum(-1)
    for _ in range(leapfrog):
        v = v + 0.5 * step_size * gradient
        end = end + step_size * v
        log_f, gradient, _ = path.evaluate(end, beta)
        v = v + 0.5 * step_size * gradient
    log_ratio = log_f - start + kinetic - 0.5 * v.square().sum(-1)
    accept = torch.rand_like(log_ratio).log() < log_ratio
    return torch.where(accept[..., None], end, z)


def anneal(path: Path, chains: int, moves: int, step_size: float, leapfrog: int) -> Tensor:
    """Log weights [chains, batch], nats: the weight at the old z, then the move."""
    z = path.sample(chains)
    log_w = torch.zeros(z.shape[:2])
    for old, beta in pairwise(torch.linspace(0, 1, moves + 1).tolist()):
        log_w += (beta - old) * path.evaluate(z, beta)[2]
        z = move(path, z, beta, step_size, leapfrog)
    return log_w


def time_annealing(args: argparse.Namespace) -> list[Block]:
    """Milliseconds per sweep over all temperatures."""
    torch.manual_seed(0)
    model = IWAE().requires_grad_(False)
    x = torch.randint(0, 2, (args.images, PIXELS)).float()

    def sweep(n: int) -> None:
        for _ in range(n):
            log_w = anneal(Path(model, x), args.chains, args.moves, args.step_size, args.leapfrog)
            if not log_w.isfinite().all():
                raise FloatingPointError("a log weight is not finite")

    return time_blocks(sweep, seconds=args.seconds, warm_up=2)


def main() -> None:
    """Measure in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--moves", type=int, default=5, help="temperatures after the first")
    parser.add_argument("--leapfrog", type=int, default=10, help="steps per move")
    parser.add_argument("--step-size", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps({"blocks": time_annealing(args), "version": f"torch {torch.__version__}"}))


if __name__ == "__main__":
    main()

"""The step of an AIWAE in plain PyTorch, to compare the trainer with.

The decoder learns from S annealed chains per image (T temperatures, L leapfrog steps with accept
and reject, step sizes that follow the acceptance), the encoder from the ELBO of one sample, with an
Adam each (Ding & Freedman 2019). The moves are those of `torch_annealing.py`, with gradients in the
latents only.

    python benchmarks/torch_aiwae.py                                # prints one JSON object
"""

import argparse
import json
from itertools import pairwise

import torch
from torch import Tensor

from timing import Block, cores, time_blocks
from torch_annealing import Path
from torch_step import IMAGES, IWAE, random_images


def annealed(
    path: Path, betas: list[float], steps: list[float], chains: int, leapfrog: int
) -> tuple[Tensor, Tensor]:
    """Latents and log weights of the chains; the step sizes are changed in place."""
    z = path.sample(chains)
    log_w = torch.zeros(z.shape[:-1])
    for number, (before, beta) in enumerate(pairwise(betas)):
        log_f, gradient, ratio = path.evaluate(z, beta)
        log_w += (beta - before) * ratio
        momentum, size = torch.randn_like(z), steps[number]
        start = log_f - 0.5 * momentum.square().sum(-1)
        proposal, v = z, momentum + 0.5 * size * gradient
        for step in range(leapfrog):
            proposal = proposal + size * v
            end, gradient, _ = path.evaluate(proposal, beta)
            v = v + (size if step < leapfrog - 1 else 0.5 * size) * gradient
        accepted = (end - 0.5 * v.square().sum(-1) - start).exp().clamp(max=1.0)
        z = torch.where((torch.rand_like(accepted) < accepted)[..., None], proposal, z)
        factor = 1.002 if accepted.mean() >= 0.6 else 0.998
        steps[number] = min(max(size * factor, 1e-3), 0.3)
    return z, log_w


def log_joint(model: IWAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) up to a constant, [chains, batch]."""
    logits = model.decoder(z)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"
    )
    return -losses.sum(-1) - 0.5 * z.square().sum(-1)


def time_steps(args: argparse.Namespace) -> list[Block]:
    """Milliseconds per step."""
    torch.manual_seed(0)
    model, images = IWAE(), random_images()
    decoder = list(model.decoder.parameters())
    encoder = [p for p in model.parameters() if all(p is not q for q in decoder)]
    optimizers = [torch.optim.Adam(ps, 1e-3, eps=1e-4, fused=True) for ps in (decoder, encoder)]
    betas = torch.linspace(0, 1, args.temperatures).tolist()
    steps = [0.1] * (args.temperatures - 1)

    def run(n: int) -> None:
        for _ in range(n):
            chosen = images[torch.randint(0, IMAGES, (args.batch,))].float() / 255
            x = (torch.rand_like(chosen) < chosen).float()
            with torch.no_grad():
                path = Path(model, x)
            for p in decoder:  # the chains need no gradient of the weights
                p.requires_grad_(False)
            z, log_w = annealed(path, betas, steps, args.chains, args.leapfrog)
            for p in decoder:
                p.requires_grad_(True)
            weights = torch.softmax(log_w, 0)
            loss = -(weights * log_joint(model, x, z)).sum(0).mean()
            loss.backward(inputs=decoder)
            loss = -model.log_weights(x, 1).mean()
            loss.backward(inputs=encoder)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return time_blocks(run, seconds=args.seconds, warm_up=2)


def main() -> None:
    """Measure in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--chains", type=int, default=5)
    parser.add_argument("--temperatures", type=int, default=5)
    parser.add_argument("--leapfrog", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps({"blocks": time_steps(args), "version": f"torch {torch.__version__}"}))


if __name__ == "__main__":
    main()

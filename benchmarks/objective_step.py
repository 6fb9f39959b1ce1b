"""Cost of every objective and gradient: milliseconds per training step, and peak memory.

    python benchmarks/objective_step.py [--k 1 5 50 500] [--json FILE] [--torch-python PYTHON]

All use batches of 20 of the published one-layer model (784-200-200-50), with the same number of
particles per example; MIWAE and PIWAE have them in groups. The ratio is to the IWAE with as many
particles, timed in the same run; the memory is what the steps need at their peak besides data,
states and programs. The last lines are AIWAE's own setting (S = T = L = 5, batch 128) here and in
plain PyTorch (`torch_aiwae.py`). Each measurement runs in its own process. They take turns, round
after round; blocks during which other programs used the cores are left out. In an existing record,
new measurements replace those of the same settings.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

from timing import cores
from train_step import MISSING_TORCH, Contestant, has_torch, run_rounds

VARIANTS = {
    "iwae": {},
    "iwae stl": {"gradient": "stl"},
    "iwae dreg": {"gradient": "dreg"},
    "iwae dreg-alpha": {"gradient": "dreg-alpha", "alpha": 0.5},
    "iwae gdreg": {"gradient": "gdreg"},
    "elbo": {"objective": "elbo"},
    "elbo-analytic": {"objective": "elbo-analytic"},
    "miwae": {"objective": "miwae", "m": 5},
    "miwae dreg": {"objective": "miwae", "m": 5, "gradient": "dreg"},
    "piwae": {"objective": "piwae", "m": 5},
    "ciwae": {"objective": "ciwae", "beta": "learned"},
    "ciwae dreg": {"objective": "ciwae", "beta": 0.5, "gradient": "dreg"},
    "vr-iwae dreg": {"objective": "vr-iwae", "alpha": 0.5, "gradient": "dreg"},
    "vr-max": {"objective": "vr-max"},
    "tvo": {"objective": "tvo"},
    "tvo dreg": {"objective": "tvo", "gradient": "dreg"},
    "tvo score": {"objective": "tvo", "gradient": "score"},
    "rws": {"objective": "rws"},
    "rws rws-dreg": {"objective": "rws", "gradient": "rws-dreg"},
    "iwae warm-up, free bits": {"kl_warmup_steps": 1000, "free_bits": 0.1},
}
"""Variants that evaluate the decoder as often as IWAE does."""

LONGER = {
    "dais T=5": {"objective": "dais", "temperatures": 5},
    "aiwae T=5 L=5": {"objective": "aiwae", "temperatures": 5, "leapfrog": 5},
}
"""Variants that move their particles, and so evaluate the decoder more often."""

OWN_SETTING = {"objective": "aiwae", "k": 5, "temperatures": 5, "leapfrog": 5}


def declared(variant: dict, k: int) -> dict:
    """A declaration with k particles per example, in equal groups if the objective has groups."""
    groups = variant.get("m", 1) if k % variant.get("m", 1) == 0 else 1
    return {**variant, "k": k // groups, **({"m": groups} if "m" in variant else {})}


def contestants(ks: list[int], torch_python: str | None) -> list[Contestant]:
    """All contestants of a round."""
    listed = []
    for k in ks:
        for name, variant in {**VARIANTS, **LONGER}.items():
            words = ("--declare", json.dumps(declared(variant, k)))
            listed.append(Contestant(f"{name} k={k}", sys.executable, "iwae_step.py", words))
    if torch_python:
        words = ("--declare", json.dumps(OWN_SETTING), "--batch", "128")
        listed.append(Contestant("aiwae S=5 batch=128", sys.executable, "iwae_step.py", words))
        listed.append(Contestant("torch aiwae S=5 batch=128", torch_python, "torch_aiwae.py", ()))
    return listed


def main() -> None:
    """Measure, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 50, 500])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--torch-python", help="interpreter with PyTorch")
    args = parser.parse_args()
    torch_python = args.torch_python or (sys.executable if has_torch(sys.executable) else None)
    if torch_python is None:
        print(MISSING_TORCH.format(python=sys.executable), file=sys.stderr)
    found = run_rounds(contestants(args.k, torch_python), args.rounds, args.seconds)
    for name, (timing, measured) in found.items():
        base = found.get(f"iwae k={name.rpartition('k=')[2]}")
        ratio = "" if base is None else f"{timing.median / base[0].median:6.2f} x iwae"
        memory = f"{measured.working_mib:7.0f} MiB" if measured.working_mib else ""
        print(f"{name:32} {timing.median:9.2f} ms {memory} {ratio}")
    if args.json:
        before = json.loads(args.json.read_text())["results"] if args.json.exists() else {}
        now = {name: (timing, measured.working_mib) for name, (timing, measured) in found.items()}
        record = {
            "machine": platform.processor() or platform.machine(),
            "cores": cores(),
            "results": {**before, **now},
            "versions": sorted({measured.version for _, measured in found.values()}),
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

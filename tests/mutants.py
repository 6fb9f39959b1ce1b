"""Planted faults that tests must detect: `make mutants`, or `python tests/mutants.py [PATTERN]`.

Each mutant is a small change to one file, such as a flipped sign. It is applied to a copy of the
package, and the test files named with it run on that copy: they must fail. A mutant that survives
is a gap in the tests.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        file: its file, relative to the package.
        before: a passage that occurs exactly once in the file.
        after: the passage that replaces it.
        tests: names of the test files that must fail, without `test_` and `.py`.
    """

    file: str
    before: str
    after: str
    tests: str


_WEIGH = "        chains = update_annealing_weights(chains, step.delta)\n"
_MOVE = "        chains, acceptance = annealing_move(path, chains, keys, step, n_leapfrog)\n"

MUTANTS = {
    # Bounds
    "miwae-axes-swapped": Mutant(
        "objectives/bounds.py",
        "jax.vmap(log_mean_exp)(log_w.reshape(m, -1))",
        "jax.vmap(log_mean_exp)(log_w.reshape(m, -1).T)",
        "named_objectives bounds",
    ),
    "miwae-groups-interleaved": Mutant(
        "objectives/bounds.py",
        "(log_w.reshape(m, -1)))",
        "(log_w.reshape(-1, m).T))",
        "named_objectives bounds",
    ),
    "ciwae-weights-swapped": Mutant(
        "objectives/bounds.py",
        "beta * elbo(log_w) + (1 - beta) * iwae(log_w)",
        "(1 - beta) * elbo(log_w) + beta * iwae(log_w)",
        "bounds named_objectives gradient_estimators",
    ),
    "renyi-wrong-sign": Mutant(
        "objectives/bounds.py",
        "power, mean = 1 -",
        "power, mean = 1 +",
        "named_objectives bounds",
    ),
    "tvo-right-sum": Mutant(
        "objectives/tvo.py",
        "b[1:] if upper else b[:-1]",
        "b[:-1] if upper else b[1:]",
        "named_objectives bounds",
    ),
    "moments-bisection-reversed": Mutant(
        "objectives/tvo.py",
        "jnp.where(below, middle, low), jnp.where(below, high, middle)",
        "jnp.where(below, low, middle), jnp.where(below, middle, high)",
        "named_objectives bounds",
    ),
    "log-mean-exp-without-k": Mutant(
        "inference/log_weights.py", " - jnp.log(float(log_w.size))", "", "particles"
    ),
    "ess-sum-not-squared": Mutant(
        "inference/log_weights.py", "jnp.sum(w) ** 2 /", "jnp.sum(w) /", "particles"
    ),
    "same-key-for-all-particles": Mutant(
        "inference/particles.py",
        "jax.random.fold_in(key, i))(indices)",
        "jax.random.fold_in(key, 0 * i))(indices)",
        "particles",
    ),
    "weights-without-q": Mutant(
        "inference/particles.py",
        "model.log_joint(x, z) - posterior.log_prob(z)\n\n    return",
        "model.log_joint(x, z)\n\n    return",
        "particles",
    ),
    # Gradients
    "stl-keeps-score-term": Mutant(
        "objectives/gradient_estimators.py",
        "    return Estimator(score=False)",
        "    return Estimator()",
        "gradient_estimators unbiased",
    ),
    "dreg-without-curvature-term": Mutant(
        "objectives/gradient_estimators.py",
        "a - second_derivatives(reduction, log_w), jnp",
        "a, jnp",
        "gradient_estimators",
    ),
    "vimco-wrong-sign": Mutant(
        "objectives/score_function.py",
        "jnp.zeros_like(a), a - score_function_signal(",
        "jnp.zeros_like(a), a + score_function_signal(",
        "discrete",
    ),
    "vimco-baseline-of-wrong-particle": Mutant(
        "inference/log_weights.py",
        "jax.lax.cumlogsumexp(log_w)[:-1]])",
        "jax.lax.cumlogsumexp(log_w)[1:]])",
        "discrete",
    ),
    "vimco-baseline-of-all-particles": Mutant(
        "objectives/score_function.py",
        "(jnp.sum(apart) - apart) / n",
        "jnp.sum(apart) / n",
        "discrete",
    ),
    "ovis-gamma-ignored": Mutant(
        "objectives/score_function.py",
        "(1 - gamma) * w - constant",
        "w - constant",
        "discrete",
    ),
    "langevin-without-proposal-ratio": Mutant(
        "inference/langevin.py",
        "gain + log_prob(state[0], back) - log_prob(new, forth)",
        "gain",
        "discrete",
    ),
    "langevin-reverse-gradient-of-old-state": Mutant(
        "inference/langevin.py",
        "back = proposals(*there, beta, step_size)",
        "back = proposals(*state, beta, step_size)",
        "discrete",
    ),
    "discrete-top-prior-logits-doubled": Mutant(
        "models/priors.py",
        "return discrete(self.kind, self.logits)",
        "return discrete(self.kind, 2 * self.logits)",
        "discrete",
    ),
    "dreg-alpha-wrong-weights": Mutant(
        "objectives/gradient_estimators.py",
        "(1 - 2 * alpha) * w**2",
        "(1 - alpha) * w**2",
        "gradient_estimators",
    ),
    "piwae-decoder-bound-ignored": Mutant(
        "objectives/gradient_estimators.py",
        "decoder=jax.grad(decoder)(log_w)",
        "decoder=table.decoder",
        "gradient_estimators named_objectives",
    ),
    "tvo-covariance-wrong-sign": Mutant(
        "objectives/tvo.py",
        "width * (w - (1 - beta) * spread)",
        "width * (w + (1 - beta) * spread)",
        "gradient_estimators unbiased",
    ),
    "miwae-curvature-not-averaged": Mutant(
        "objectives/gradient_estimators.py",
        "log_w.reshape(m, -1)).ravel() / m",
        "log_w.reshape(m, -1)).ravel()",
        "gradient_estimators",
    ),
    "renyi-curvature-not-scaled": Mutant(
        "objectives/gradient_estimators.py",
        "(1 - alpha) * _iwae_curvature((1 - alpha) * log_w)",
        "_iwae_curvature((1 - alpha) * log_w)",
        "gradient_estimators",
    ),
    "score-added-not-subtracted": Mutant(
        "objectives/surrogates.py",
        "return zero - density_surrogate(score, log_q)",
        "return zero + density_surrogate(score, log_q)",
        "gradient_estimators unbiased",
    ),
    "path-without-decoder-share": Mutant(
        "objectives/surrogates.py",
        "table.path / decoder",
        "table.path",
        "gradient_estimators unbiased",
    ),
    "tags-ignored": Mutant(
        "objectives/surrogates.py",
        "lambda leaf: factor * leaf, z_bar",
        "lambda leaf: leaf, z_bar",
        "gradient_estimators",
    ),
    "resampling-without-weight-factors": Mutant(
        "inference/resampling.py",
        "1 / jnp.where(chosen, chances[index], 1.0), 0.0",
        "1.0, 0.0",
        "backward_particles",
    ),
    "resampling-probability-above-one": Mutant(
        "inference/resampling.py",
        "jnp.minimum(1.0, shares",
        "jnp.minimum(2.0, shares",
        "backward_particles",
    ),
    "wake-sleep-wake-phase-doubled": Mutant(
        "objectives/wake_sleep.py",
        'share = 1.0 if phase == "sleep" else 0.5',
        "share = 1.0",
        "named_objectives gradient_estimators unbiased",
    ),
    "sleep-gradient-through-the-sample": Mutant(
        "objectives/wake_sleep.py",
        "z, x = jax.lax.stop_gradient(stop_gradients(model).sample(key))",
        "z, x = model.sample(key)",
        "gradient_estimators named_objectives unbiased",
    ),
    "free-bits-threshold-doubled": Mutant(
        "objectives/penalties.py",
        "known > self.free_bits)",
        "known > 2 * self.free_bits)",
        "named_objectives bounds training",
    ),
    "warm-up-one-step-early": Mutant(
        "objectives/penalties.py",
        'tuned["kl_steps"].astype(jnp.float32) / self',
        '(tuned["kl_steps"] + 1).astype(jnp.float32) / self',
        "named_objectives",
    ),
    "dais-momentum-not-refreshed": Mutant(
        "objectives/dais.py",
        "kept * pushed + jnp.sqrt(1 - kept**2) * fresh",
        "kept * pushed + (1 - kept) * fresh",
        "named_objectives bounds",
    ),
    "dais-last-half-step": Mutant(
        "objectives/dais.py",
        "step_size if i < steps - 1 else step_size / 2",
        "step_size",
        "named_objectives bounds",
    ),
    # Annealing
    "annealing-weight-after-move": Mutant(
        "inference/annealing.py",
        _WEIGH + _MOVE,
        _MOVE + _WEIGH,
        "annealing",
    ),
    "reverse-chain-wrong-sign": Mutant(
        "inference/annealing.py",
        "update_annealing_weights(chains, -step.delta)",
        "update_annealing_weights(chains, step.delta)",
        "annealing",
    ),
    "upper-bound-wrong-sign": Mutant(
        "evaluation/bdmc.py",
        '"upper": -log_mean_exp(log_w)',
        '"upper": log_mean_exp(log_w)',
        "annealing diagnostics",
    ),
    "mixed-upper-side-without-reverse-chains": Mutant(
        "evaluation/bdmc.py",
        "jnp.mean(jnp.logaddexp(-reverse_log_w, log_sum_of_other_weights(log_w)))",
        "jnp.mean(log_sum_of_other_weights(log_w))",
        "diagnostics",
    ),
    "mixed-upper-side-with-k-forward-chains": Mutant(
        "evaluation/bdmc.py",
        "jnp.logaddexp(-reverse_log_w, log_sum_of_other_weights(log_w))",
        "jnp.logaddexp(-reverse_log_w, jax.nn.logsumexp(log_w))",
        "diagnostics",
    ),
    "mixed-upper-side-wrong-sign": Mutant(
        "evaluation/bdmc.py",
        "jnp.logaddexp(-reverse_log_w, log_sum",
        "jnp.logaddexp(reverse_log_w, log_sum",
        "diagnostics",
    ),
    "same-key-for-all-temperatures": Mutant(
        "inference/annealing.py",
        "jax.random.fold_in(key, step.number)",
        "jax.random.fold_in(key, 0)",
        "annealing",
    ),
    "annealing-sum-not-compensated": Mutant(
        "inference/annealing.py",
        "jnp.where(jnp.isfinite(value), excess, 0.0)",
        "jnp.zeros_like(excess)",
        "annealing",
    ),
    "schedule-not-rescaled": Mutant(
        "inference/temperatures.py", "beta / beta[-1]", "beta", "annealing"
    ),
    # Evaluation
    "likelihood-without-log-k": Mutant(
        "evaluation/likelihood.py",
        "top + jnp.log(total) - jnp.log(jnp.float32(k))",
        "top + jnp.log(total)",
        "likelihood",
    ),
    "chunks-not-rescaled": Mutant(
        "evaluation/likelihood.py", "total * scale + jnp.sum(w)", "total + jnp.sum(w)", "likelihood"
    ),
    "padding-counted": Mutant(
        "evaluation/examples.py", "np.asarray(leaf)[:count]", "np.asarray(leaf)", "likelihood"
    ),
    "same-key-for-all-examples-of-a-slab": Mutant(
        "evaluation/examples.py", "jax.random.fold_in(key, i))", "key)", "likelihood"
    ),
    "active-units-noise-not-subtracted": Mutant(
        "evaluation/units.py", " - (1 - 1 / n) * noise / n", "", "likelihood"
    ),
    "active-units-wrong-threshold": Mutant(
        "evaluation/units.py", "ACTIVE_THRESHOLD = 0.01", "ACTIVE_THRESHOLD = 0.1", "likelihood"
    ),
    "sandwich-constant-omitted": Mutant(
        "evaluation/two_sided_bounds.py", "ratio + log_c - 1)", "ratio + log_c)", "two_sided_bounds"
    ),
    "sandwich-c-from-its-own-weight": Mutant(
        "inference/log_weights.py",
        "jax.lax.cumlogsumexp(log_w)[:-1]])",
        "jax.lax.cumlogsumexp(log_w)])[1:]",
        "two_sided_bounds",
    ),
    "sandwich-wrong-log-weight": Mutant(
        "evaluation/two_sided_bounds.py",
        "ratio + log_c - 1)",
        "ratio + log_w - 1)",
        "two_sided_bounds",
    ),
    "sandwich-heavy-tail-ignored": Mutant(
        "evaluation/tails.py", "if tail > pareto_threshold(n):", "if tail > 99:", "two_sided_bounds"
    ),
    "verdict-ignores-heavy-tail": Mutant(
        "evaluation/convergence.py", "elif doubt is not None:", "elif False:", "diagnostics"
    ),
    "pilots-share-a-key": Mutant(
        "results/ais.py", "_BETAS_STREAM = 2**32 - 1", "_BETAS_STREAM = 1", "adaptive"
    ),
    "adaptive-schedule-without-weighting": Mutant(
        "inference/adaptive.py",
        "(1 - (grid[1:] + grid[:-1]) / 2) * variances",
        "variances",
        "adaptive",
    ),
    "ranks-ties-not-broken": Mutant(
        "evaluation/calibration.py", "(below + v * equal)", "below", "calibration"
    ),
    "ranks-exclude-the-true-latent": Mutant(
        "evaluation/calibration.py", "+ v) / (k + 1)", ") / k", "calibration"
    ),
    "ranks-weights-swapped": Mutant(
        "evaluation/calibration.py", "(equal, weighted)", "(weighted, equal)", "calibration"
    ),
    "ecdf-bands-pointwise": Mutant(
        "evaluation/ecdf_bands.py", "p = (point - last) / (1 - last)", "p = point", "calibration"
    ),
    "slope-with-independent-ratio-errors": Mutant(
        "evaluation/gradient_signal.py",
        "np.where(np.outer(known, known), together, covariance)",
        "covariance",
        "gradient_signal",
    ),
    "block-jackknife-wrong-factor": Mutant(
        "evaluation/gradient_signal.py",
        "return (blocks - 1) / blocks * apart",
        "return 1 / blocks * apart",
        "gradient_signal",
    ),
    # Models
    "logit-wrong-sign": Mutant(
        "models/likelihoods/bernoulli.py",
        "return np.log(mean) - np.log1p(-mean)",
        "return np.log(mean) + np.log1p(-mean)",
        "likelihoods",
    ),
    "scale-without-a-floor": Mutant(
        "models/likelihoods/gaussian.py",
        "jnp.exp(limit_below(log_scale, math.log(LEAST_SCALE)))",
        "jnp.exp(log_scale)",
        "likelihoods",
    ),
    "missing-values-scored": Mutant(
        "models/likelihoods/missing.py",
        "jnp.sum(jnp.where(observed, each, 0.0))",
        "jnp.sum(each)",
        "missing_values",
    ),
    "encoder-does-not-see-mask": Mutant(
        "models/likelihoods/missing.py",
        "observed.astype(jnp.float32)])",
        "jnp.ones_like(x)])",
        "missing_values",
    ),
    "probit-scale-ignored": Mutant(
        "models/likelihoods/masking.py",
        "jnp.sqrt(1 + (self.slope * self._scale) ** 2)",
        "jnp.sqrt(1 + self.slope**2)",
        "missing_data likelihoods missing_values",
    ),
    "discrete-pruning-at-zero": Mutant(
        "evaluation/pruning.py",
        "return jnp.asarray(means[l], jnp.float32)",
        "return jnp.zeros(width)",
        "discrete",
    ),
    "flow-in-every-layer": Mutant(
        "models/named_densities.py",
        "(posterior.size, *(0,) * (len(kinds) - 1))",
        "(posterior.size,) * len(kinds)",
        "priors",
    ),
    "vampprior-weights-not-normalised": Mutant(
        "models/priors.py", "jnp.full(size, -jnp.log(float(size)))", "jnp.zeros(size)", "priors"
    ),
    "mixture-prior-without-scales": Mutant(
        "models/priors.py", " + jnp.log(units.scale) + LOG_ROOT_2PI", " + LOG_ROOT_2PI", "priors"
    ),
    "flow-without-log-determinant": Mutant(
        "models/flows.py", " + log_det + more", " + log_det", "priors"
    ),
    "vampprior-not-settled": Mutant(
        "objectives/halves.py", "generative = generative.settled()", "pass", "priors"
    ),
    "gdreg-drops-mixture-gradient": Mutant(
        "objectives/gdreg.py",
        "value += sum(density_surrogate(c, score) for score in scores)",
        "del scores",
        "priors",
    ),
    # Training
    "loss-not-negated": Mutant(
        "training/steps.py",
        "return -jnp.mean(values), info",
        "return jnp.mean(values), info",
        "training",
    ),
    "same-noise-in-a-batch": Mutant(
        "training/steps.py", "jax.random.fold_in(step_key, position))", "step_key)", "training"
    ),
    "same-key-for-every-step": Mutant(
        "training/steps.py",
        "jax.random.fold_in(state.key, _STEPS), state.step)",
        "jax.random.fold_in(state.key, _STEPS), 0)",
        "training",
    ),
    "same-order-in-every-epoch": Mutant(
        "training/steps.py",
        "epoch = clock.epoch + done // settings.blocks if settings.shuffle else 0",
        "epoch = 0",
        "training",
    ),
    "epoch-mean-over-all-epochs": Mutant(
        "training/steps.py",
        "seen = (state.step - clock.step) % steps_per_epoch",
        "seen = state.step - clock.step",
        "training",
    ),
    "average-without-warm-up": Mutant(
        "training/steps.py",
        "jnp.minimum(decay, (1 + done) / (10 + done))",
        "decay",
        "training stages",
    ),
    "best-weights-always-replaced": Mutant(
        "training/loop.py",
        "active & (values > old + np.float32(threshold))",
        "active",
        "training runs",
    ),
    "validation-key-not-fixed": Mutant(
        "training/loop.py",
        "_VALIDATION_SEED = 0",
        "_VALIDATION_SEED = int(time.time())",
        "training runs",
    ),
    "adam-wrong-epsilon": Mutant(
        "training/optimizers.py", "b2=0.999, eps=1e-4)", "b2=0.999, eps=1e-8)", "training"
    ),
    "authors-adam-wrong-initial-moments": Mutant(
        "training/optimizers.py",
        "jax.tree.map(jnp.ones_like, params)",
        "jax.tree.map(jnp.zeros_like, params)",
        "training",
    ),
    "schedule-wrong-lengths": Mutant(
        "training/schedules.py",
        "PAPER_EPOCHS = tuple(3**i",
        "PAPER_EPOCHS = tuple(2**i",
        "training config",
    ),
    "schedule-wrong-rates": Mutant(
        "training/schedules.py", "1e-3 * 10 ** (-i / 7)", "1e-3 * 10 ** (-i / 8)", "training config"
    ),
    "warm-up-from-start-of-run": Mutant(
        "training/schedules.py", "(step + 1 - self.first)", "(step + 1)", "training stages"
    ),
    "soap-wrong-second-moment": Mutant(
        "training/optimizers.py", "(1 - b2) * h**2", "(1 - b2) * jnp.abs(h)", "training"
    ),
    "soap-not-rotated-back": Mutant(
        "training/optimizers.py",
        "directions.append(d if q is None else _back(jnp.clip(d, -1, 1), q, is_first))",
        "directions.append(d)",
        "training",
    ),
    "soap-unclipped": Mutant("training/optimizers.py", "jnp.clip(d, -1, 1)", "d", "training"),
    "stage-resets-the-optimiser": Mutant(
        "training/stages.py",
        "        opt_state = state.opt_state\n",
        "        opt_state = new.opt_state\n",
        "stages",
    ),
    "stage-keeps-incomparable-best": Mutant(
        "training/stages.py", "if not _validates_alike(before, stage):", "if False:", "stages"
    ),
    # Files, records and published numbers
    "checkpoint-unchecked": Mutant(
        "runs/checkpoints.py",
        "if digest_named_arrays(named, notes) != expected:",
        "if False:",
        "checkpoints",
    ),
    "published-number-mistyped": Mutant(
        "config/presets.py", '("iwae", 50, 84.78', '("iwae", 50, 84.87', "reproduce config"
    ),
    "error-of-the-mean-without-root": Mutant(
        "evaluation/standard_errors.py",
        "ddof=1) / np.sqrt(n)) if",
        "ddof=1) / n) if",
        "diagnostics measure",
    ),
    "records-of-other-models-accepted": Mutant(
        "experiments/tasks.py", "one.record.digests == digests", "True", "queue reproduce"
    ),
    "record-migration-omitted": Mutant(
        "results/schema.py", '{"backward": None, **row}', "dict(row)", "records"
    ),
    "record-without-its-error": Mutant(
        "results/schema.py",
        'at one budget."""\n\n    log_likelihood: Number\n    stderr: Number\n',
        'at one budget."""\n\n    log_likelihood: Number\n',
        "records",
    ),
    "record-zlib-errors-not-caught": Mutant(
        "results/record_files.py", "BadZipFile, zlib.error", "BadZipFile", "records"
    ),
    "record-zip-errors-not-caught": Mutant(
        "results/record_files.py", "    RuntimeError,", "", "records"
    ),
    "packed-record-preferred": Mutant(
        "results/record_files.py",
        "    own = path.exists() or not packed.exists()\n",
        "    own = not packed.exists()\n",
        "records",
    ),
    "record-measured-while-packing-lost": Mutant(
        "results/record_files.py",
        "if file.stat().st_mtime_ns == times[file]",
        "if times[file]",
        "records",
    ),
    "record-values-unchecked": Mutant(
        "results/record_files.py",
        'digest_named_arrays(values, "") if values else None',
        "None",
        "records",
    ),
    "record-of-the-first-model": Mutant(
        "results/reading.py", "    of = part or record\n", "    of = record\n", "records"
    ),
    # Data larger than memory
    "blocks-of-consecutive-rows": Mutant(
        "training/feed.py",
        'np.argsort(sampling_generator(epoch, BLOCK_ROWS).random(runs), kind="stable")',
        "np.arange(runs)",
        "streaming",
    ),
    "repeated-rows-read-as-a-run": Mutant(
        "data/rows.py", "(np.diff(run) == 1).all()", "len(block) == len(run)", "streaming"
    ),
    "sums-in-another-order": Mutant(
        "data/column_statistics.py", "    half -= half % 8\n", "", "streaming"
    ),
    "draws-indexed-within-a-block": Mutant(
        "data/rows.py",
        "found[part] = self.convert(self.base[inner[part]], inner[part])",
        "found[part] = self.convert(self.base[inner[part]], inner[part] - inner[start])",
        "streaming",
    ),
    "resumed-runs-streamed": Mutant(
        "runs/jobs.py",
        "config.stream is None and not resumed",
        "config.stream is None",
        "streaming",
    ),
    # Fault tolerance
    "npz-checksum-unchecked": Mutant(
        "data/arrays.py", "(changed := loaded.zip.testzip())", "(changed := None)", "reliability"
    ),
    "toml-dots-unlimited": Mutant(
        "config/toml.py", 'if line.count(b".") > MOST_DOTS:', "if number < 0:", "reliability"
    ),
    "metrics-accept-infinity": Mutant(
        "runs/metrics.py", " and math.isfinite(one) for one in", " for one in", "reliability"
    ),
    "model-depth-unlimited": Mutant(
        "runs/model_files.py", "if depth > MOST_LAYERS:", "if depth < 0:", "reliability"
    ),
    "deleted-folder-unchecked": Mutant(
        "runs/folder.py",
        "if not path.exists() or not os",
        "if path.exists() and not os",
        "reliability",
    ),
    "temporary-file-unlocked": Mutant(
        "files.py",
        "            fcntl.flock(handle, fcntl.LOCK_EX)\n",
        "            pass\n",
        "reliability",
    ),
    "left-over-files-kept": Mutant(
        "files.py", "    _remove_left_over(parent)\n    temp", "    temp", "reliability"
    ),
    "hidden-frames-read": Mutant(
        "reports/gallery.py",
        'glob("[0-9]*.npz") if path.stem.isdigit()',
        'glob("*.npz")',
        "reliability",
    ),
    "matlab-unchecked": Mutant(
        "data/dataset_files.py",
        "if file.read in ONLY_PUBLISHED and",
        "if not file and",
        "reliability",
    ),
    # Figures
    "bounds-not-paired": Mutant(
        "results/compare.py", "(one, places) - zero", "(one, places) - zero.mean()", "gallery"
    ),
    "filters-scaled-by-constant-pixels": Mutant(
        "reports/figures/images.py", "np.where(varying, weights, 0)", "weights", "figures"
    ),
    "latents-of-inactive-units": Mutant(
        "reports/latent_figure.py", "axis=0))[:, active]", "axis=0))", "latent_figure"
    ),
    "latents-fence-from-upper-quartile": Mutant(
        "reports/latent_figure.py", "lower - FENCE", "upper - FENCE", "latent_figure"
    ),
    # User data
    "scale-counts-missing-values": Mutant(
        "models/vae.py", "jnp.where(jnp.isnan(x), 0.0, log_scale)", "log_scale", "scaling"
    ),
    "penalty-without-units": Mutant(
        "objectives/penalties.py",
        "model.log_likelihood(x, to_joint)",
        "model.decode(to_joint).log_prob(x)",
        "scaling",
    ),
    "scaling-rounding-unchecked": Mutant(
        "data/scaling.py", "if merged <= NEGLIGIBLE * len(distinct):", "if True:", "scaling"
    ),
    "p-value-ignores-ties": Mutant(
        "evaluation/scores.py", 'side="right"', 'side="left"', "row_answers"
    ),
    "held-out-fold-trained-on": Mutant(
        "runs/folds.py", "train=data.train[seen]", "train=data.train", "folds"
    ),
    "p-values-of-last-fold-only": Mutant(
        "evaluation/scores.py", "below += np.searchsorted", "below = np.searchsorted", "folds"
    ),
    "pooling-without-correction": Mutant(
        "evaluation/pooling.py", "(1 + 1 / m) * between", "between", "row_answers"
    ),
    "hidden-values-as-zeros": Mutant(
        "training/hiding.py", "x.shape), jnp.nan, x)", "x.shape), 0.0, x)", "hiding"
    ),
    "same-hidden-values-in-every-step": Mutant(
        "training/steps.py",
        "data_key, hide_key = jax.random.split(data_key)",
        "hide_key = jax.random.key(0)",
        "hiding",
    ),
    "k-hat-of-complete-rows": Mutant(
        "evaluation/imputation.py",
        "jnp.where(jnp.isnan(x).any(), ",
        "jnp.where(True, ",
        "missing_values",
    ),
    "unreliable-rows-not-annealed": Mutant(
        "evaluation/imputation.py", "if anneal and (bad", "if not anneal and (bad", "missing_values"
    ),
    "annealed-rows-wrong-threshold": Mutant(
        "evaluation/imputation.py",
        "pareto_threshold(again.k)",
        "pareto_threshold(k)",
        "missing_values",
    ),
    "pareto-threshold-ignores-k": Mutant(
        "evaluation/tails.py", "min(1 - 1 / float(np.log10(k)), 0.7)", "0.7", "diagnostics"
    ),
    "annealed-rows-wrong-keys": Mutant(
        "evaluation/imputation.py",
        "again_key, places[bad]",
        "again_key, places[: bad.sum()]",
        "missing_values",
    ),
    "annealed-rows-share-an-example-key": Mutant(
        "evaluation/imputation.py", "np.uint32(2**32 - 1), ", "np.uint32(1), ", "missing_values"
    ),
    "stages-shared-across-seeds": Mutant(
        "runs/shared_stages.py", '"log_every"}', '"log_every", "seed"}', "stages"
    ),
    # Conditional models
    "information-across-labels": Mutant(
        "evaluation/information.py", "counts = is_alike & (", "counts = (", "given_labels"
    ),
    "units-not-standardised": Mutant(
        "evaluation/units.py", "if standardised and ", "if not standardised and ", "given_labels"
    ),
    "conditional-pruning-at-zero": Mutant(
        "evaluation/pruning.py",
        "jnp.where(keep, 0.0, parameters[0])",
        "jnp.zeros(keep.size)",
        "given_labels",
    ),
    "conditional-sampling-unweighted": Mutant(
        "evaluation/conditional_sampling.py",
        "return self.vae.log_joint(x, z)",
        "return sum(self.vae.layer_log_priors(z))",
        "row_answers",
    ),
    # Errors of likelihood estimates
    "jackknife-wrong-factor": Mutant(
        "evaluation/standard_errors.py", "jnp.sqrt((b - 1) / b *", "jnp.sqrt(1 / b *", "likelihood"
    ),
    "jackknife-batches-not-in-turn": Mutant(
        "evaluation/standard_errors.py", "first % BATCHES)", "0)", "likelihood"
    ),
    "draw-error-not-averaged": Mutant(
        "results/summaries.py", "number(one / np.sqrt(draws))", "number(one)", "standard_errors"
    ),
    "draws-share-a-seed": Mutant(
        "data/binarisation.py",
        '["binarization_seed"] + number',
        '["binarization_seed"] + 1',
        "standard_errors",
    ),
    "draws-share-particles": Mutant(
        "results/likelihood.py", "key if draw == 0 else", "key if draw >= 0 else", "standard_errors"
    ),
    "subset-without-population-correction": Mutant(
        "results/extrapolation.py", " * np.sqrt(1 - m / n)", "", "standard_errors"
    ),
    "subset-extrapolated-by-tightest-bound": Mutant(
        "results/extrapolation.py",
        "min(reversed(controls), key=error)",
        "controls[-1]",
        "standard_errors",
    ),
    "mismatched-budgets-accepted": Mutant(
        "results/reading.py", "numbers.shape != values.shape[1:2] or ", "", "standard_errors"
    ),
    "subset-strata-not-sorted-by-bound": Mutant(
        "results/subsets.py", 'np.argsort(values, kind="stable")', "np.arange(n)", "standard_errors"
    ),
    "subset-extrapolated-from-other-models": Mutant(
        "results/extrapolation.py", '"digests", "test_sha256")', '"test_sha256")', "standard_errors"
    ),
    "draws-extrapolated-to-looser-bounds": Mutant(
        "results/extrapolation.py", "if one.k <= row.k]", "if one.k]", "standard_errors"
    ),
    "replicate-errors-independent": Mutant(
        "results/extrapolation.py",
        "float(np.mean(np.array(errors, float)))",
        "float(np.linalg.norm(np.array(errors, float)) / len(errors))",
        "standard_errors",
    ),
    "subset-of-another-test-set-reused": Mutant(
        "results/subsets.py", 'record.test_sha256 or ""', 'wanted["test_sha256"]', "standard_errors"
    ),
    "unreliable-errors-not-marked": Mutant(
        "results/formatting.py", "row.pareto_k_unreliable >= UNRELIABLE", "False", "standard_errors"
    ),
}


def test_file(name: str) -> Path:
    """The test file of this name, in any folder."""
    (path,) = ROOT.glob(f"tests/**/test_{name}.py")
    return path


def survives(mutant: Mutant, package: Path) -> bool:
    """Whether the tests pass despite the fault; `package` is a copy, which is restored."""
    path = package / "iwae" / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        sys.exit(
            f"mutants.py: {mutant.file} has {text.count(mutant.before)} times {mutant.before!r}"
        )
    path.write_text(text.replace(mutant.before, mutant.after))
    tests = [test_file(name) for name in mutant.tests.split()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, *tests],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    path.write_text(text)
    if done.returncode not in (0, 1):
        sys.exit(f"mutants.py: pytest ended with status {done.returncode} on {mutant.file}")
    return done.returncode == 0


def main(*patterns: str) -> int:
    """Plant the faults whose names match a pattern; the exit status is 1 if one survives."""
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        package = Path(shutil.copytree(ROOT / "src", Path(folder) / "src"))
        for name, mutant in MUTANTS.items():
            if any(fnmatch(name, pattern) for pattern in patterns or ("*",)):
                alive = survives(mutant, package)
                survivors += alive
                print(f"{name:40} {'SURVIVES' if alive else 'noticed'}", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

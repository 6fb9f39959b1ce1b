"""Records in words, for a terminal."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from iwae.results import schema
from iwae.results.formatting import (
    MIXED_WORDS,
    NAMES_OF_RANKS,
    format_ascii,
    format_estimator,
    format_mean,
    format_monte_carlo_error,
    has_heavy_weights,
    plus_minus,
)
from iwae.results.schema import Method, Number, Part, Record
from iwae.wording import count_in_words

Bound = schema.SampledRow | schema.AnnealedRow


def describe(document: Mapping[str, Any] | Record) -> str:
    """A record in a few lines."""
    record = schema.parse(document)
    lines = [_head(record)]
    for number, one in enumerate(record.models):
        name = f"replicate {number}: " if len(record.models) > 1 else ""
        lines += [f"  {name}{line}" for line in LINES[record.method](one)]
    rows: tuple[Bound, ...] = (*record.by_k, *record.by_temperatures)
    for row in rows if record.replicates else ():
        spread = row.between_replicates_sd
        words = "" if spread is None else f", standard deviation between replicates {spread:.3f}"
        lines += [f"  mean {_bound(row)}{words}", *(f"  {words}" for words in _completed(row))]
    if record.method in ABOUT:
        lines += [f"  {words}" for words in ABOUT[record.method](record)]
    if rows and record.is_drawn and all(row.binarizations is None for row in rows):
        more = " --pruned" * record.pruned + " --weights best" * (record.weights == "best")
        lines.append(
            "  pixel draw error not measured: iwae evaluate RUN --k 50 --binarizations 8" + more
        )
    violations = record.ordering.violations
    return "\n".join([*lines, *(f"  NOT IN ORDER: {words}" for words in violations)])


def _bound(row: Bound) -> str:
    """A bound and its error from the choice of examples, for all examples if that is known."""
    name = f"L_{row.k}" if isinstance(row, schema.SampledRow) else f"AIS_{row.temperatures}"
    if (whole := row.whole) is None:
        return f"{name} = {format_mean(row)}{_bits_words(row)}"
    subset = format_ascii(plus_minus(whole.subset_error))
    return f"{name} = {format_mean(whole)} for all {whole.n} examples, subset error {subset}"


def _bits_words(row: schema.Weights) -> str:
    """The bound in bits per dimension, for quantised data."""
    if row.bits_per_dimension is None:
        return ""
    return f" = {format_mean(row, 'bits_per_dimension')} bits per dimension"


def _head(record: Record) -> str:
    """One line about the subject."""
    if record.split == "simulated":
        examples = f"{count_in_words(record.n, 'example')} {record.dataset}"
    else:
        by = record.subset.stratified_by if record.subset else None
        strata = f", stratified by {by}" if by else ""
        subset = f" (a random subset{strata})" if record.subset else ""
        examples = f"{record.dataset} {record.split}, {count_in_words(record.n, 'example')}{subset}"
    missing = record.config.get("missing")
    gaps = ", of the observed values" * (missing is not None)
    gaps += " and of which they are" * (missing not in (None, "at-random"))
    unit = "" if record.method == Method.CALIBRATION else f"; nats per example{gaps}"
    return f"{examples}, {record.weights} weights{', pruned' * record.pruned}{unit}"


def _importance_lines(one: Part) -> Iterator[str]:
    for row in one.by_k:
        yield f"{_bound(row)}  ({_weights(row)})"
        yield from _completed(row)
    yield _active_units(one)


def _annealed_lines(one: Part) -> Iterator[str]:
    for row in one.by_temperatures:
        yield f"{_bound(row)}  ({_weights(row)}; {_acceptance(row)})"
        yield from _completed(row)
    if (found := one.verdict) is not None:
        yield f"{found.word} (tolerance {found.tolerance:g}): {found.reason}"
        if found.bdmc_gap is None and found.sandwich_gap is None:
            yield (
                "no bounds from both sides with these settings yet: iwae evaluate --method bdmc "
                "or sandwich"
            )
    yield _active_units(one)


def _acceptance(one: schema.Weights) -> str:
    return f"acceptance {one.acceptance_mean:.2f}"


def _bidirectional_lines(one: Part) -> Iterator[str]:
    yield f"annealing: {_between(one)}"
    if one.mixed_gap is not None:
        yield f"annealing, {MIXED_WORDS}: {_between(one, 'mixed_')}"
    if one.importance is not None:
        yield f"{one.importance.k} importance samples: {_between(one.importance)}"
    yield _acceptance(one)


def _sandwich_lines(one: Part) -> Iterator[str]:
    """A table of bounds on real and simulated examples, the verdict, and diagnostics."""
    simulated, sampled = one.simulated, one.importance
    rows = _both_kinds("annealing", one, simulated)
    if sampled is not None:
        name = f"{sampled.k} importance samples"
        rows += _both_kinds(name, sampled, simulated and simulated.importance)
    width = max(len(name) for name, _ in rows)
    for name, cells in rows:
        yield f"{name + ':':{width + 1}} {cells}"
    if (found := one.verdict) is not None:
        yield f"{found.word} (tolerance {found.tolerance:g}): {found.reason}"
    yield f"annealing: {_weights(one)}; {_acceptance(one)}"
    if sampled is not None:
        yield f"importance samples: {_weights(sampled)}"


def _both_kinds(
    name: str, real: schema.Sides | Part, simulated: schema.Sides | None
) -> list[tuple[str, str]]:
    """Names and texts of bounds on real examples, on all of the split, and on simulated ones."""
    rows = [(name, _between(real))]
    if real.lower_whole is not None and real.upper_whole is not None:
        rows.append((f"{name}, all examples", _between_whole(real.lower_whole, real.upper_whole)))
    name = f"{name}, simulated examples"
    if simulated is None:
        return [*rows, (name, "not measured with these settings: iwae evaluate --method bdmc")]
    rows.append((name, _between(simulated)))
    if simulated.mixed_gap is not None:
        rows.append((f"{name}, {MIXED_WORDS}", _between(simulated, "mixed_")))
    return rows


def _between(row: schema.Fields, prefix: str = "") -> str:
    """Both sides and their gap, with a prefix for the fields of the upper side."""
    return _filled_in(f"between {{lower}} and {{{prefix}upper}}, gap {{{prefix}gap}}", row)


def _between_whole(lower: schema.Whole, upper: schema.Whole) -> str:
    errors = " and ".join(format_ascii(plus_minus(one.subset_error)) for one in (lower, upper))
    sides = f"{format_mean(lower)} and {format_mean(upper)}"
    return f"between {sides}, subset errors {errors}, by {lower.by} of all {lower.n}"


def _about_sides(record: Record) -> Iterator[str]:
    """The limits of a sampled upper side, as a warning if the tails of the weights are heavy."""
    rows: list[schema.Weights] = []
    for one in record.models:
        rows += [row for row in (one, one.importance) if row is not None]
    tails = [(row.ratio_pareto_k, row.ratio_pareto_k_threshold) for row in rows]
    known = [tail > limit for tail, limit in tails if tail is not None and limit is not None]
    unknown = len(known) < len(tails) or any(row.pareto_k_unreliable is None for row in rows)
    warning = ""
    if any(known) or any(map(has_heavy_weights, rows)):
        warning = "WARNING, a k-hat is too large: "
    elif unknown:
        warning = "WARNING, a k-hat is unknown: "
    yield (
        f"{warning}an upper side holds in expectation; where the tail of the weights is heavy, the "
        "largest were not drawn, and it is too low"
    )


def _curve_lines(one: Part) -> Iterator[str]:
    yield _filled_in("-(rate + distortion) at beta = 1: {log_likelihood}", one)
    yield f"{_acceptance(one)}; `iwae figures` draws the curve"


def _information_lines(one: Part) -> Iterator[str]:
    yield _filled_in("ELBO {log_likelihood}: rate {rate} and distortion {distortion}", one)
    limit = f"at most {one.mutual_information_limit:.3f} from so many examples"
    sides = f"{{mutual_information_lower}} ({limit}) and {{mutual_information_upper}}"
    yield _filled_in(f"mutual information between {sides}", one)
    yield _filled_in("KL of the average posterior to the prior: at most {marginal_kl}", one)
    if isinstance(gap := one.gap, schema.Gap):
        total = f"{gap.log_p} - ELBO = {{total}} ({count_in_words(gap.n, 'example')})"
        parts = f"{gap.bound} recovers {{recovered}}, and leaves {{remaining}}"
        yield _filled_in(f"{total}: {parts}", gap)
    else:
        yield "to split the gap of the ELBO, measure with --method is and ais, then repeat this"


def _filled_in(words: str, row: schema.Fields) -> str:
    """A text with means and errors in place of their names in braces."""
    return re.sub(r"\{(\w+)\}", lambda name: format_mean(row, name[1]), words)


SMALLEST_P = 1e-9
"""Smallest probability shown: smaller ones are rounding errors of 1 less a sum."""


def _calibration_lines(one: Part) -> Iterator[str]:
    """Coverage, units outside the bands, and the worst of these, layer by layer."""
    for layer in one.calibration:
        name = NAMES_OF_RANKS[layer.of]
        covered = ", ".join(
            f"{interval.level:.0%}: {_percent(interval)}" for interval in layer.coverage
        )
        yield f"layer {layer.layer}, {name}: central intervals contain the true latent, {covered}"
        worst = "; ".join(
            f"unit {unit.unit}: mean rank {unit.mean_rank:.3f}, spread {unit.spread:.2f}, p "
            + (f"= {unit.p_value:.2g}" if unit.p_value > SMALLEST_P else f"< {SMALLEST_P:g}")
            for unit in layer.worst
        )
        outside = f"{layer.outside} of {count_in_words(layer.units, 'unit')} outside the band"
        yield f"  {outside}; farthest {worst}"


def _percent(interval: schema.Coverage) -> str:
    mean, error = (value and 100 * value for value in interval.mean("coverage"))
    return f"{format_ascii(plus_minus(mean, error, 1))} %"


def _about_ranks(record: Record) -> Iterator[str]:
    """The properties of exact calibration, and the limits of the method."""
    yield (
        f"{count_in_words(record.k or 0, 'draw')} of each example; of exactly calibrated units, "
        f"{1 - (record.band_level or 0):.0%} are outside by chance; mean rank 0.5 and spread 1 "
        "are exact, a spread above 1 is a q that is too narrow, one below 1 a q that is too wide"
    )
    yield "inactive units, whose q and posterior are both the prior, are calibrated exactly"


def _classification_lines(one: Part) -> Iterator[str]:
    yield _filled_in("accuracy {accuracy}", one)
    likelihoods = "log p(y|x) = {label_log_probability}; log p(x) = {marginal_log_likelihood}"
    yield _filled_in(f"L_{one.k} of p(x|y), own label = {{log_likelihood}}; {likelihoods}", one)
    if one.auroc is not None:
        above = "share of pairs whose log p(x) is above that of the other data"
        yield _filled_in(f"AUROC {{auroc}}: {above}, {{others_marginal_log_likelihood}}", one)


def _about_labels(record: Record) -> Iterator[str]:
    """The most frequent confusions of labels, over all replicates, and a caution."""
    names = record.data["classes"]
    counts = np.sum([one.confusion for one in record.models], axis=0)
    pairs = [(int(n), i, j) for (i, j), n in np.ndenumerate(counts) if i != j and n]
    for n, i, j in sorted(pairs, reverse=True)[:5]:
        yield f"{names[i]} taken for {names[j]}: {n} of {counts[i].sum()}"
    if record.others is not None:
        others = f"{record.others}, {record.others_n} test examples"
        yield f"the other data are {others}; {record.caution}"


LINES: dict[Method, Callable[[Part], Iterator[str]]] = {
    Method.IMPORTANCE: _importance_lines,
    Method.ANNEALED: _annealed_lines,
    Method.BIDIRECTIONAL: _bidirectional_lines,
    Method.SANDWICH: _sandwich_lines,
    Method.CURVE: _curve_lines,
    Method.INFORMATION: _information_lines,
    Method.CLASSIFICATION: _classification_lines,
    Method.CALIBRATION: _calibration_lines,
}
"""Method -> the lines about one replicate."""

ABOUT: dict[Method, Callable[[Record], Iterator[str]]] = {
    Method.SANDWICH: _about_sides,
    Method.CLASSIFICATION: _about_labels,
    Method.CALIBRATION: _about_ranks,
}
"""Method -> the lines about all replicates."""


def _weights(row: schema.Weights) -> str:
    """Diagnostics of the weights behind a bound."""
    words = f"effective sample size {row.ess_mean:.1f}"
    if row.pareto_k_unreliable is not None:
        words += f"; k-hat above {row.pareto_k_threshold:.2f} for {row.pareto_k_unreliable:.0%}"
    if row.ratio_pareto_k is not None:
        words += f"; k-hat of w/c {row.ratio_pareto_k:.2f}"
    return "; ".join([words, *format_monte_carlo_error(row)])


def _completed(row: schema.Weights) -> Iterator[str]:
    """Lines about a bound extrapolated to all examples, and about other draws of the pixels."""
    if (whole := row.whole) is not None:
        yield (
            f"  from {whole.by} of all and the difference on the subset, whose own mean is "
            f"{format_mean(row)}{_bits_words(row)}"
        )
    if (drawn := row.binarizations) is not None:
        by = "" if drawn.by is None else f" (draws of {drawn.by})"
        own = " of the subset" if whole is not None and drawn.by is None else ""
        errors = _or_unknown(drawn.draws_error), _or_unknown(drawn.one_draw_error)
        yield (
            f"  mean over {drawn.draws} draws of the pixels{own} {format_mean(drawn)}, error of "
            f"the draws {errors[0]}, of one draw {errors[1]}{by}"
        )


def _or_unknown(error: Number) -> str:
    return "unknown" if error is None else plus_minus(error)


def _active_units(one: Part) -> str:
    units = "+".join(map(str, one.active_units))
    authors = "+".join(map(str, one.active_units_authors))
    return f"active units {units} (authors' definition: {authors})"


def comparison_description(comparison: Mapping[str, Any]) -> str:
    """A comparison as a table."""
    runs, subset = comparison["runs"], ", a subset of the split" * comparison["subset"]
    estimator, split = comparison["estimator"], comparison["split"]
    examples = f"{estimator}, {split}, {comparison['n']} examples in common{subset}"
    lines = [f"{examples}, {comparison['weights']} weights; nats per example"]
    several = len({one["weights"] for one in runs}) > 1
    names = [one["run"] + f", {one['weights']}" * several for one in runs]
    width = max(map(len, names))
    for name, one in zip(names, runs, strict=True):
        numbers, spread = (one["log_likelihood"], one["stderr"]), one["between_replicates_sd"]
        line = f"  {name:{width}}  {plus_minus(*numbers, spread=spread, of=' of replicates')}"
        if one["difference"] is not None:
            sign = "" if one["significant"] else ", which may be chance"
            difference = plus_minus(one["difference"], one["difference_stderr"], sign="+")
            line += f"  {difference} to the first{sign}"
        if one["whole"] is not None:
            whole = schema.Whole(**one["whole"])
            line += f"  (all {whole.n}: {format_mean(whole)}, subset error "
            line += f"{plus_minus(whole.subset_error)}, by {whole.by})"
        lines.append(format_ascii(line))
    return "\n".join(lines)


def gradients_description(document: Mapping[str, Any] | Record) -> str:
    """Signal, noise and bias of gradients, a line for each k, estimator and group."""
    record = schema.parse(document)
    batch = f"{count_in_words(record.n, f'{record.split} example')} of {record.dataset}"
    draws = f"{record.draws} draws of a batch of {batch}"
    against = f"bias against {record.reference}" if record.reference else "bias not measured"
    lines = [f"{record.objective}, {draws}; {against}"]
    for row in record.rows:
        memory = "" if row.memory_bytes is None else f", {row.memory_bytes / 2**20:.1f} MiB"
        cost = f"{1e3 * row.seconds_per_draw:.1f} ms{memory}"
        lines.append(f"  k = {row.k}, {format_estimator(row)}: {cost}")
        for name, cell in row.groups.items():
            bias = _bias_words(cell.bias, record.biased_above or 0)
            words = f"; {bias}" if record.reference else ""
            lines.append(
                f"    {name:10} signal/noise {cell.snr:.4g} +- {cell.snr_stderr:.2g}, "
                f"mean {cell.mean_norm:.4g}, variance {cell.variance:.4g}{words}"
            )
    least = f" from k = {record.slope_from}" if record.slope_from > 1 else ""
    for one in record.slopes:
        power = format_ascii(plus_minus(one.slope, one.stderr, 2, sign="+"))
        name = f"{one.group} by {format_estimator(one)}"
        lines.append(f"  signal/noise of {name} grows like k^({power}){least}")
    return "\n".join(lines)


def _bias_words(bias: schema.Bias | None, limit: float) -> str:
    """The result of the paired test for bias."""
    if bias is None:
        return "the reference"
    if bias.z is None or bias.relative is None:
        return "the bias is not finite"
    found = "BIASED" if abs(bias.z) > limit else "no bias seen"
    return f"{found}: {100 * bias.relative:+.2f} % of the mean, {abs(bias.z):.1f} standard errors"

"""Records in words, for a terminal."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iwae.results.reading import Method, each_model

Record = Mapping[str, Any]


def describe(record: Record) -> str:
    """A record in a few lines."""
    each = each_model(record)
    lines = [_head(record)]
    for number, one in enumerate(each):
        name = f"replicate {number}: " if len(each) > 1 else ""
        lines += [f"  {name}{line}" for line in LINES[record["method"]](one)]
    if "replicates" in record:
        rows = [*record.get("by_k", ()), *record.get("by_temperatures", ())]
        lines += [f"  mean {_name(row)} = {_spread(row)}" for row in rows]
    if record["method"] == Method.CLASSIFICATION:
        lines += [f"  {words}" for words in _about_labels(record)]
    violations = record.get("ordering", {}).get("violations", [])
    return "\n".join([*lines, *(f"  NOT IN ORDER: {words}" for words in violations)])


def _name(row: Record) -> str:
    """The name of a row's estimate."""
    return f"L_{row['k']}" if "k" in row else f"AIS_{row['temperatures']}"


def _spread(row: Record) -> str:
    """A mean over replicates."""
    spread = row["between_replicates_sd"]
    words = with_error(row) + _bits(row)
    return (
        words if spread is None else f"{words}, standard deviation between replicates {spread:.3f}"
    )


def _bits(row: Record) -> str:
    """The same per dimension, where the data are levels."""
    if row.get("bits_per_dimension") is None:
        return ""
    return f" = {with_error(row, 'bits_per_dimension')} bits per dimension"


def _head(record: Record) -> str:
    """One line about the subject."""
    if record["split"] == "simulated":
        what = f"{record['n']} examples {record['dataset']}"
    else:
        subset = " (a random subset)" if record["subset"] else ""
        what = f"{record['dataset']} {record['split']}, {record['n']} examples{subset}"
    pruned = ", pruned" if record["pruned"] else ""
    return f"{what}, {record['weights']} weights{pruned}; nats per example{_of(record)}"


def _of(record: Record) -> str:
    """The values that the densities are of, where some are missing."""
    missing = record.get("config", {}).get("missing")
    if missing is None:
        return ""
    gaps = "" if missing == "at-random" else " and of which they are"
    return f", of the observed values{gaps}"


def _importance(one: Record) -> Iterator[str]:
    for row in one["by_k"]:
        yield f"{_name(row)} = {with_error(row)}{_bits(row)}  ({_weights(row)})"
    yield _units(one)


def _annealed(one: Record) -> Iterator[str]:
    for row in one["by_temperatures"]:
        yield (
            f"{_name(row)} = {with_error(row)}{_bits(row)}  ({_weights(row)}; acceptance "
            f"{row['acceptance_mean']:.2f})"
        )
    found = one["verdict"]
    yield f"{found['word']} (tolerance {found['tolerance']:g}): {found['reason']}"
    if found["bdmc_gap"] is None:
        yield "no bounds from both sides with these settings yet: iwae evaluate --method bdmc"
    yield _units(one)


def _bidirectional(one: Record) -> Iterator[str]:
    importance = one["importance"]
    for name, row in (("annealing", one), (f"{importance['k']} importance samples", importance)):
        yield (
            f"{name}: between {with_error(row, 'lower')} and {with_error(row, 'upper')}, gap "
            f"{with_error(row, 'gap')}"
        )
    yield f"acceptance {one['acceptance_mean']:.2f}"


def _curve(one: Record) -> Iterator[str]:
    yield f"-(rate + distortion) at beta = 1: {with_error(one)}"
    yield f"acceptance {one['acceptance_mean']:.2f}; `iwae figures` draws the curve"


def _information(one: Record) -> Iterator[str]:
    yield (
        f"ELBO {with_error(one)}: rate {with_error(one, 'rate')} and distortion "
        f"{with_error(one, 'distortion')}"
    )
    lower, upper = (with_error(one, f"mutual_information_{side}") for side in ("lower", "upper"))
    yield (
        f"mutual information between {lower} (at most {one['mutual_information_limit']:.3f} from "
        f"so many examples) and {upper}"
    )
    yield f"KL of the average posterior to the prior: at most {with_error(one, 'marginal_kl')}"
    gap = one["gap"]
    if gap is None:
        yield "the gap of the ELBO is split where there are records of is and ais"
    else:
        yield (
            f"{gap['log_p']} - ELBO = {with_error(gap, 'total')} ({gap['n']} examples): "
            f"{gap['bound']} recovers {with_error(gap, 'recovered')}, and leaves "
            f"{with_error(gap, 'remaining')}"
        )


def _classification(one: Record) -> Iterator[str]:
    yield f"accuracy {with_error(one, 'accuracy')}"
    yield (
        f"L_{one['k']} of p(x|y), own label = {with_error(one)}; log p(y|x) = "
        f"{with_error(one, 'label_log_probability')}; log p(x) = "
        f"{with_error(one, 'marginal_log_likelihood')}"
    )
    if "auroc" in one:
        yield (
            f"AUROC {with_error(one, 'auroc')}: how often log p(x) is above that of other data, "
            f"{with_error(one, 'others_marginal_log_likelihood')}"
        )


def _about_labels(record: Record) -> Iterator[str]:
    """Which labels were taken for which most often, over all replicates, and a caution."""
    names, each = record["data"]["classes"], each_model(record)
    pairs = [
        (sum(one["confusion"][i][j] for one in each), i, j)
        for i in range(len(names))
        for j in range(len(names))
        if i != j
    ]
    worst = [pair for pair in sorted(pairs, reverse=True)[:5] if pair[0]]
    of = [sum(sum(one["confusion"][i]) for one in each) for i in range(len(names))]
    yield from (f"{names[i]} taken for {names[j]}: {n} of {of[i]}" for n, i, j in worst)
    if record["others"] is not None:
        others = f"{record['others']}, {record['others_n']} test examples"
        yield f"the other data are {others}; {record['caution']}"


LINES: dict[str, Callable[[Record], Iterator[str]]] = {
    Method.IMPORTANCE: _importance,
    Method.ANNEALED: _annealed,
    Method.BIDIRECTIONAL: _bidirectional,
    Method.CURVE: _curve,
    Method.INFORMATION: _information,
    Method.CLASSIFICATION: _classification,
}
"""Method -> the lines about one replicate."""


def _weights(row: Record) -> str:
    """Diagnostics of the weights behind a number."""
    words = f"effective sample size {row['ess_mean']:.1f}"
    if row["pareto_k_unreliable"] is not None:
        words += (
            f"; k-hat above {row['pareto_k_threshold']:.2f} for {row['pareto_k_unreliable']:.0%}"
        )
    if row["monte_carlo_error"] is not None:
        words += f"; Monte Carlo error {row['monte_carlo_error']:.3f}"
    return words


def _units(one: Record) -> str:
    units = "+".join(map(str, one["active_units"]))
    authors = "+".join(map(str, one["active_units_authors"]))
    return f"active units {units} (authors' definition: {authors})"


def with_error(row: Record, name: str = "log_likelihood") -> str:
    """A mean and its standard error, as far as they exist."""
    error = "stderr" if name == "log_likelihood" else f"{name}_stderr"
    return plus_minus(row[name], row[error]).replace("±", "+-")


def plus_minus(mean: float | int | None, error: float | int | None, digits: int = 3) -> str:
    """A mean and its standard error, as far as they exist."""
    if mean is None:
        return "not finite"
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def describe_comparison(record: Record) -> str:
    """A comparison as a table."""
    what = f"{record['estimator']}, {record['split']}, {record['n']} examples in common"
    lines = [f"{what}, {record['weights']} weights; nats per example"]
    width = max(len(one["run"]) for one in record["runs"])
    for one in record["runs"]:
        line = f"  {one['run']:{width}}  {with_error(one)}"
        if one["between_replicates_sd"] is not None:
            line += f"  (sd of replicates {one['between_replicates_sd']:.3f})"
        if one["difference"] is not None:
            sign = "" if one["significant"] else ", which may be chance"
            line += (
                f"  {one['difference']:+.3f} +- {one['difference_stderr']:.3f} to the first{sign}"
            )
        lines.append(line)
    return "\n".join(lines)


def describe_gradients(record: Record) -> str:
    """Signal, noise and bias of gradients, a line for each k, estimator and group."""
    batch = f"{record['n']} {record['split']} examples of {record['dataset']}"
    lines = [
        f"{record['objective']}, {record['draws']} draws of a batch of {batch}; bias against "
        + record["reference"]
    ]
    for row in record["rows"]:
        memory = "" if row["memory_bytes"] is None else f", {row['memory_bytes'] / 2**20:.1f} MiB"
        cost = f"{1e3 * row['seconds_per_draw']:.1f} ms{memory}"
        lines.append(f"  k = {row['k']}, {estimator_name(row)}: {cost}")
        for name, cell in row["groups"].items():
            bias = cell["bias"]
            words = "the reference" if bias is None else _bias(bias, record["biased_above"])
            lines.append(
                f"    {name:10} signal/noise {cell['snr']:.4g} +- {cell['snr_stderr']:.2g}, "
                f"mean {cell['mean_norm']:.4g}, variance {cell['variance']:.4g}; {words}"
            )
    lines += [
        f"  signal/noise of {one['group']} by {estimator_name(one)} grows like "
        f"k^({one['slope']:+.2f} +- {one['stderr']:.2f})"
        for one in record["slopes"]
    ]
    return "\n".join(lines)


def estimator_name(row: Record) -> str:
    """An estimator of a gradient, and the particles that it goes through if they are not all."""
    few = row.get("backward")  # which older records do not have
    return row["gradient"] if few is None else f"{row['gradient']}, backward {few}"


def _bias(bias: Record, limit: float) -> str:
    """The result of the paired test."""
    found = "BIASED" if abs(bias["z"]) > limit else "no bias seen"
    size = f"{100 * bias['relative']:+.2f} % of the mean, {abs(bias['z']):.1f} standard errors"
    return f"{found}: {size}"

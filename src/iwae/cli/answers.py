"""`iwae encode`, `score`, `sample` and `impute`: apply a run's model to rows, or draw rows."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from iwae.cli import parsing
from iwae.cli.jax_setup import set_up_jax
from iwae.errors import UserError
from iwae.files import check_writable_file
from iwae.wording import count_in_words, unquoted_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of all commands that use a model."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of an exported model."""
    weights: Literal["final", "best"] | None = None
    """The final weights, or those with the best validation bound (default: best, if validated)."""
    seed: int = 0
    """Random seed."""
    overwrite: bool = False
    """Replace existing output files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions(ModelOptions):
    """Options of all commands that read rows."""

    file: tyro.conf.Positional[Path]
    """Rows: a .csv, .tsv, .parquet or .npy file, or a folder of images, with the columns that the
    run was trained on, in any order."""
    unknown: Literal["error", "missing"] = "error"
    """Treatment of a word that the training data lack."""


Out = Annotated[Path, tyro.conf.arg(help="File to write: .csv, .tsv, .parquet, .npy or .npz")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode(RowOptions):
    """Write the latents of each row: posterior means and standard deviations.

    Columns z1, z2, ... are means and z1_sd, ... standard deviations of the first stochastic layer,
    after the columns carried through with --id. For a flow posterior, they are estimated from 1,000
    draws.
    """

    out: Out
    k: int | None = None
    """Importance samples per row, to describe the true posterior instead of the encoder's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(RowOptions):
    """Write the log-likelihood of each row, and how unusual it is.

    log_likelihood is in nats, with its Monte Carlo error, which may be larger than stated where
    pareto_k is above 1 - 1/log10(k), or above 0.7 if k is 2,200 or more. p_value is small for
    outliers: one plus the number of the m rows held out from training that are at most as likely,
    over m + 1.
    """

    out: Out
    k: int = 1000
    """Importance samples per row."""
    p_values: bool = True
    """Compare with the rows that the run held out; needs the training data."""
    data_dir: parsing.DataDir = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(ModelOptions):
    """Write rows drawn from the model, in the units and words of the training data.

    Rows of a conditional model start with a column of labels, except in an .npy file, which has no
    names. With --given, they are draws of the other columns given the values of some.
    """

    out: Out
    n: int
    """Number of rows."""
    given: str | None = None
    """Values of some columns, e.g. "age=40, city=Oslo"; a name or value with commas, equals signs
    or quotes in double quotes, as in a .csv file."""
    k: int | None = None
    """With --given: particles to draw from (default: 100000; 1000 chains for ais)."""
    method: Literal["is", "ais"] = "is"
    """With --given: importance sampling, or annealing, for improbable values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Impute(RowOptions):
    """Fill in the missing values of a table with a run's model.

    The run must have been trained with --missing. Each missing value is replaced by its expectation
    given the observed values of its row (a category: by the most likely one) or, with --draws, by
    a draw.
    """

    out: Path
    """File for the completed table, with the suffix of the table."""
    draws: int | None = None
    """Write this many multiple imputations instead, numbered from 1; pool estimates from them with
    `iwae.pool`."""
    k: int = 1000
    """Importance samples per row."""
    anneal: bool = True
    """Repeat rows whose k-hat is too large by annealed importance sampling (slower)."""
    khat: bool = False
    """Add columns for rows with gaps: pareto_k, k-hat of the weights, and pareto_k_threshold, above
    which imputed values are unreliable."""
    batch_size: int | None = None
    """Rows per batch; affects speed, not results (default: automatic)."""


def encode_command(arguments: Sequence[str]) -> int:
    """`iwae encode`."""
    options = parsing.parse(Encode, "encode", arguments)
    _check_out(options.out, options.file, overwrite=options.overwrite)
    set_up_jax()
    from iwae.data.writers import write_table_pieces
    from iwae.runs.row_answers import encode_row_pieces

    n, pieces = encode_row_pieces(**_as_arguments(options))
    write_table_pieces(options.out, pieces, n)
    _print_binarized(options)
    print(options.out)
    return 0


def score_command(arguments: Sequence[str]) -> int:
    """`iwae score`."""
    options = parsing.parse(Score, "score", arguments)
    _check_out(options.out, options.file, overwrite=options.overwrite)
    set_up_jax()
    from iwae.data.writers import write_table_pieces
    from iwae.evaluation.tails import pareto_threshold
    from iwae.runs.row_answers import score_row_pieces

    n, pieces = score_row_pieces(**_as_arguments(options))
    total, unreliable, threshold = 0.0, 0, pareto_threshold(options.k)

    def summed() -> Iterator[Any]:
        nonlocal total, unreliable
        for cells in pieces:
            total += cells["log_likelihood"].sum(dtype=float)
            unreliable += int((cells["pareto_k"] > threshold).sum())
            yield cells

    write_table_pieces(options.out, summed(), n)
    print(f"mean log-likelihood {total / n:.3f} nats over {count_in_words(n, 'row', ',')}")
    meaning = "whose Monte Carlo error may be larger than stated"
    _print_unreliable(unreliable, f"above {threshold:.2f}", meaning)
    _print_binarized(options, "monte_carlo_error")
    print(options.out)
    return 0


def _print_binarized(options: RowOptions, error: str = "") -> None:
    """Print a line if the rows were binarised at random.

    Args:
        error: column of an error that does not include the error of the binarisation.
    """
    from iwae.runs.row_reading import reads_binarized_rows, row_reading_model

    if reads_binarized_rows(row_reading_model(options.run, options.weights)):
        without = f", and {error} does not include that" if error else ""
        print(
            f"grey levels were binarised at random, as in training (--seed {options.seed}; another "
            f"seed draws other pixels{without})"
        )


def _print_unreliable(count: int, size: str, meaning: str) -> None:
    """Print a line if k-hat is too large for some rows."""
    if count:
        print(f"k-hat is {size} for {count_in_words(count, 'row', ',')}, {meaning}")


def sample_command(arguments: Sequence[str]) -> int:
    """`iwae sample`."""
    options = parsing.parse(Sample, "sample", arguments)
    _check_out(options.out, None, overwrite=options.overwrite)
    given = _parse_given(options.given)
    set_up_jax()
    from iwae.data.writers import write_table
    from iwae.evaluation.tails import pareto_threshold
    from iwae.models.conditional import ConditionalVAE
    from iwae.runs.row_answers import label_of, sample_rows
    from iwae.runs.row_reading import row_reading_model

    k = {"is": 100_000, "ais": 1000}[options.method] if options.k is None else options.k
    cells, found = sample_rows(
        options.run,
        options.n,
        given=given,
        k=k,
        method=options.method,
        weights=options.weights,
        seed=options.seed,
    )
    if options.out.suffix.lower() == ".npy" and len(cells) > 1:
        fit = row_reading_model(options.run, options.weights)
        if isinstance(fit.model, ConditionalVAE):
            del cells[label_of(fit)]
            print("without the labels of the rows, which files with other suffixes have")
    write_table(options.out, cells)
    if found is not None:
        threshold = pareto_threshold(k)
        warning = f": above {threshold:.2f}, so these rows are unreliable"
        print(
            f"effective sample size {found.ess:,.1f} of {k:,} particles, k-hat {found.pareto_k:.2f}"
            + (warning if found.pareto_k > threshold else "")
        )
    print(options.out)
    return 0


_PART = re.compile(
    r'\s*("(?:[^"]|"")*"|[^",=\s][^,=]*?)\s*=\s*("(?:[^"]|"")*"|[^",\s][^,]*?)\s*(?:,|$)'
)
"""NAME=VALUE up to the next comma; either may be quoted as in a .csv file."""


def _parse_given(text: str | None) -> dict[str, str]:
    """The values of columns from "age=40, city=Oslo"."""
    found: dict[str, str] = {}
    rest = text or ""
    while rest.strip() or (text is not None and not found):
        part = _PART.match(rest)
        if part is None:
            raise UserError(
                f"--given: {rest.strip()!r} is not NAME=VALUE, such as 'age=40, city=Oslo'; put a "
                "name or value with commas, equals signs or quotes in double quotes, such as "
                'city="Oslo, ""North"""'
            )
        name, value = map(unquoted_name, part.groups())
        if name in found:
            raise UserError(f"--given names {name!r} twice")
        found[name] = value
        rest = rest[part.end() :]
    return found


def impute_command(arguments: Sequence[str]) -> int:
    """`iwae impute`."""
    options = parsing.parse(Impute, "impute", arguments)
    set_up_jax()
    from iwae.inference.kernels import KHAT_LEAST
    from iwae.runs.file_imputation import impute_file

    chosen = dict(vars(options))
    done = impute_file(chosen.pop("run"), chosen.pop("file"), chosen.pop("out"), **chosen)
    remedy = "train longer, or with --hide" if options.anneal else "leave out --no-anneal"
    count = int((done.pareto_k > done.threshold).sum())
    _print_unreliable(count, "too large", f"whose imputed values are unreliable: {remedy}")
    if options.k < KHAT_LEAST:
        print(f"with k below {KHAT_LEAST}, no k-hat says whether imputed values are reliable")
    for line in done.widened:
        print(line)
    for path in done.paths:
        print(path)
    return 0


def _as_arguments(options: RowOptions) -> dict[str, Any]:
    """The options as arguments of a function of rows, which writes no file."""
    chosen = dict(vars(options))
    del chosen["out"], chosen["overwrite"]
    return {"source": chosen.pop("file"), **chosen}


def _check_out(out: Path, file: Path | None, *, overwrite: bool) -> None:
    """Raise UserError for an output that cannot be written, before any computation."""
    from iwae.data.writers import WRITERS

    if out.suffix.lower() not in WRITERS:
        raise UserError(f"{out} must have one of the suffixes {', '.join(WRITERS)}")
    check_writable_file(out, file, overwrite=overwrite)

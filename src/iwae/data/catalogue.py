"""The table of named data sets, none of which is read before it is requested.

Checksums are of the unpacked content, so that a recompressed copy is accepted. The SHA-256 of MNIST
and of statically binarised MNIST are those of files with the published MD5.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from iwae.data import readers, synthetic
from iwae.data.held_out import HeldOut, hold_out_fifth, hold_out_last_400, hold_out_shuffled_1345
from iwae.errors import UserError
from iwae.wording import shorten_value

Reader = Callable[[bytes, readers.Shapes], readers.Splits]


@dataclass(frozen=True)
class DataFile:
    """A published file: its usual names (without .gz), content, checksums and mirrors."""

    name: str
    read: Reader
    shapes: Mapping[str, tuple[int, ...]]  # [n, h, w] of each split in it
    mirrors: tuple[str, ...] = ()
    sha256: str | None = None  # of the unpacked content
    values_sha256: str | None = None  # `test_sha256` of the array, for text in another layout
    md5: str | None = None  # of the unpacked content, if no SHA-256 is known
    archive_md5: str | None = None  # of the published .gz, if no checksum of the content is known
    other_names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # names of its labels, if not those of the source
    note: str = ""  # a warning about this file, for readers of the results


Variants = tuple[tuple[DataFile, ...], ...]
"""Sets of files, any one of which holds a data set."""


@dataclass(frozen=True)
class Source:
    """A named data set, read from files or built in (`generate`).

    The first of `variants` is preferred, and the only one that is downloaded.
    """

    name: str
    description: str
    sizes: tuple[int, int, int]  # train, validation (0 unless published), test
    shape: tuple[int, ...] = (28, 28)
    values: str = "grey"  # or "binary" or "real": see binarisation.resolve
    split_rule: str = "as published"
    folders: tuple[str, ...] = ()
    variants: Variants = ()
    generate: Callable[[], readers.Splits] | None = None
    generated_sha256: str | None = None  # `test_sha256` of the raw test array of `generate`
    origin: str = ""  # where a built-in set comes from
    authors: Callable[[int], HeldOut] | None = None
    log_density: synthetic.LogDensity | None = None
    label_variants: Variants = ()  # one for each of `variants`
    generate_labels: Callable[[], readers.Splits] | None = None
    classes: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, DataFile]:
        """The files of all variants, by name."""
        return {file.name: file for variant in self.variants for file in variant}

    @property
    def binarization(self) -> str:
        """The default binarisation."""
        return "dynamic" if self.values == "grey" else "none"

    @property
    def observation(self) -> str:
        """The default observation."""
        return "gaussian" if self.values == "real" else "bernoulli"

    @property
    def validation(self) -> int:
        """The default number of validation examples."""
        return self.sizes[1]


def _digits() -> readers.Splits:
    """Scikit-learn's bundled 8 x 8 digits: whole numbers v in 0..16, as bytes 255 v / 16."""
    grey = np.rint(_digits_table()[:, :-1] * 255 / 16).astype(np.uint8)
    train, test, _ = hold_out_fifth(len(grey))
    return {"train": grey[train], "test": grey[test]}


def _digit_labels() -> readers.Splits:
    """The labels of `_digits`, split in the same way."""
    labels = _digits_table()[:, -1].astype(int)
    train, test, _ = hold_out_fifth(len(labels))
    return {"train": labels[train], "test": labels[test]}


def _digits_table() -> np.ndarray:
    """Scikit-learn's digits file, `[1797, 65]`: the pixels of each image, then its label."""
    found = find_spec("sklearn")  # importing it takes longer than training on the digits
    if found is None or found.origin is None:
        raise readers.DamagedError("install scikit-learn, which bundles it")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            table = np.loadtxt(file, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise readers.DamagedError(f"scikit-learn's {path} cannot be read ({error})") from error
    if table.shape != (1797, 65) or table.min() < 0 or table.max() > 16:
        raise readers.DamagedError("scikit-learn's digits are not 1797 x 64 values 0..16")
    if set(table[:, -1]) != set(range(10)):
        raise readers.DamagedError("scikit-learn's digit labels are not 1797 values 0..9")
    return table


DIGITS = tuple("0123456789")

_IDX = {
    "images": (readers.read_idx_images, "idx3-ubyte", (28, 28)),
    "labels": (readers.read_idx_labels, "idx1-ubyte", ()),
}
"""The reader of an MNIST-like file, its format, and the shape of one example."""


def _idx_variants(what: str, mirrors: tuple[str, ...], **sums: Any) -> Variants:
    """The training and test files of an MNIST-like set: "images", or "labels" for their classes.

    Args:
        sums: the checksums of both files, by their field of `DataFile`.
    """
    read, form, shape = _IDX[what]
    files = (
        DataFile(
            name=f"{stem}-{what}-{form}",
            other_names=(f"{stem}-{what}.{form}",),
            read=read,
            shapes={split: (count, *shape)},
            mirrors=tuple(f"{mirror}/{stem}-{what}-{form}.gz" for mirror in mirrors),
            **{field: both[i] for field, both in sums.items()},
        )
        for i, (split, stem, count) in enumerate(
            (("train", "train", 60_000), ("test", "t10k", 10_000))
        )
    )
    return (tuple(files),)


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
_FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
)


def _amat_variants(sums: Mapping[str, tuple[int, str, str]]) -> Variants:
    """The files of static MNIST, from their number of images, SHA-256 and SHA-256 of the values."""
    mirrors = (
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist",
        "https://github.com/riannevdberg/sylvester-flows/raw/master/data/MNIST_static",
    )
    files = (
        DataFile(
            name=f"binarized_mnist_{stem}.amat",
            read=readers.read_amat,
            shapes={"validation" if stem == "valid" else stem: (count, 28, 28)},
            mirrors=tuple(f"{mirror}/binarized_mnist_{stem}.amat" for mirror in mirrors),
            sha256=sha256,
            values_sha256=values_sha256,
        )
        for stem, (count, sha256, values_sha256) in sums.items()
    )
    return (tuple(files),)


_ALPHABETS = tuple(
    """
    Alphabet_of_the_Magi Angelic Anglo-Saxon_Futhorc Arcadian Armenian
    Asomtavruli_(Georgian) Atemayar_Qelisayer Atlantean Aurek-Besh Avesta Balinese Bengali
    Blackfoot_(Canadian_Aboriginal_Syllabics) Braille Burmese_(Myanmar) Cyrillic
    Early_Aramaic Futurama Ge_ez Glagolitic Grantha Greek Gujarati Gurmukhi Hebrew
    Inuktitut_(Canadian_Aboriginal_Syllabics) Japanese_(hiragana) Japanese_(katakana)
    Kannada Keble Korean Latin Malay_(Jawi_-_Arabic) Malayalam Manipuri Mkhedruli_(Georgian)
    Mongolian N_Ko Ojibwe_(Canadian_Aboriginal_Syllabics) Old_Church_Slavonic_(Cyrillic)
    Oriya Sanskrit Sylheti Syriac_(Estrangelo) Syriac_(Serto) Tagalog Tengwar Tibetan
    Tifinagh ULOG
    """.split()  # noqa: SIM905
)
"""The alphabets of OMNIGLOT, named as its published folders (Lake et al. 2015).

They are in the order of their numbers in `omniglot28.mat`, which is alphabetical."""

_OMNIGLOT_SHAPES = {"train": (24_345, 28, 28), "test": (8_070, 28, 28)}
_CHARDATA = "yburda/iwae/{}master/datasets/OMNIGLOT/chardata.mat"

_OMNIGLOT = {
    file.name: (file,)
    for file in (
        DataFile(
            name="chardata.mat",
            read=readers.read_omniglot_mat,
            shapes=_OMNIGLOT_SHAPES,
            mirrors=(
                "https://github.com/" + _CHARDATA.format("raw/"),
                "https://raw.githubusercontent.com/" + _CHARDATA.format(""),
                "https://web.archive.org/web/2id_/https://github.com/" + _CHARDATA.format("raw/"),
            ),
            md5="21ecaf34373511aa7691cf2e0802aa3d",
        ),
        DataFile(
            name="omniglot28.mat",
            read=readers.read_omniglot_mat,
            shapes=_OMNIGLOT_SHAPES,
            sha256="bce95c6aec41a533e1b2ff8eae849b5e6f05b238cb4e205e9e045fe39911c50f",
            note="a reconstruction of chardata.mat, not the file of Burda et al.",
        ),
    )
}

_FILES = (
    Source(
        name="mnist",
        description="handwritten digits, grey (LeCun et al. 1998)",
        sizes=(60_000, 0, 10_000),
        folders=("mnist", "MNIST/raw", "MNIST"),
        authors=hold_out_last_400,
        variants=_idx_variants(
            "images",
            _MNIST_MIRRORS,
            sha256=(
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
        ),
        label_variants=_idx_variants(
            "labels",
            _MNIST_MIRRORS,
            sha256=(
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        classes=DIGITS,
    ),
    Source(
        name="mnist-static",
        description="handwritten digits, binarised once (Larochelle & Murray 2011)",
        sizes=(50_000, 10_000, 10_000),
        values="binary",
        folders=("binarized_mnist", "mnist-static", "MNIST_static", "BinaryMNIST"),
        variants=_amat_variants(
            {
                "train": (
                    50_000,
                    "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
                    "e93c37812c84f500afe331e63615115736a16ab61dbd00577542faed0c83dced",
                ),
                "valid": (
                    10_000,
                    "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
                    "a2c529ee2c547817a651c0202c0ccb5856748510efbd7c74f0e25bcb219a9feb",
                ),
                "test": (
                    10_000,
                    "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
                    "8b00d0ad400da3fa9298df984f5eb3a012041de9ea9e89efa7979d4628f3a235",
                ),
            }
        ),
    ),
    Source(
        name="omniglot",
        description="characters of 50 alphabets, grey (Lake et al. 2015)",
        sizes=(24_345, 0, 8_070),
        folders=("omniglot", "OMNIGLOT"),
        authors=hold_out_shuffled_1345,
        variants=tuple(_OMNIGLOT.values()),
        label_variants=tuple(
            (
                replace(
                    file,
                    read=readers.read_omniglot_labels,
                    shapes={split: (n,) for split, (n, _, _) in _OMNIGLOT_SHAPES.items()},
                    classes=_ALPHABETS if name == "omniglot28.mat" else (),
                ),
            )
            for name, (file,) in _OMNIGLOT.items()
        ),
        classes=tuple(f"alphabet {i}" for i in range(1, readers.ALPHABETS + 1)),
    ),
    Source(
        name="fashion-mnist",
        description="articles of clothing, grey (Xiao et al. 2017)",
        sizes=(60_000, 0, 10_000),
        folders=("fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "fashion_mnist", "fashion"),
        variants=_idx_variants(
            "images",
            _FASHION_MIRRORS,
            archive_md5=(
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "bef4ecab320f06d8554ea6380940ec79",
            ),
        ),
        label_variants=_idx_variants(
            "labels",
            _FASHION_MIRRORS,
            archive_md5=(
                "25c81989df183df01b3e8a0aad5dffbe",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        classes=(
            *("T-shirt", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
    ),
)

_DIGITS = Source(
    name="digits",
    description="handwritten digits, 8 x 8, grey (bundled with scikit-learn)",
    shape=(8, 8),
    sizes=(1_437, 0, 360),
    split_rule=hold_out_fifth(1_797)[2],
    generate=_digits,
    generate_labels=_digit_labels,
    classes=DIGITS,
    generated_sha256="652364273b72fb15ce9bb11efcf54931edcc79693a86ad0e0c8f53c1f32a3986",
    origin="bundled with scikit-learn",
)


def _synthetic(
    name: str, description: str, distribution: synthetic.Synthetic, d: int, sha256: str
) -> Source:
    """A synthetic set of d values, whose test examples have a known digest."""
    return Source(
        name=name,
        description=description,
        shape=(d,),
        sizes=(synthetic.SIZES["train"], 0, synthetic.SIZES["test"]),
        values="real",
        split_rule=f"drawn by numpy PCG64([{synthetic.SEED}, 0]) and PCG64([{synthetic.SEED}, 1])",
        generate=lambda: synthetic.synthetic_splits(distribution),
        generated_sha256=sha256,
        origin="generated from a fixed seed",
        log_density=distribution.log_density,
    )


_SYNTHETIC = (
    _synthetic(
        "camel",
        "two humps in 1-D: N(-1, 0.5^2) and N(1, 0.5^2)",
        synthetic.CAMEL,
        1,
        "cea7707b7db1da9ee3d16b1b7ad08de4af44978241b07c9b6f0096897a6d8e66",
    ),
    _synthetic(
        "two-clusters",
        "two Gaussian clusters of different size and weight in 2-D",
        synthetic.TWO_CLUSTERS,
        2,
        "83b265690f165c12447a9043454d639761277a8231bf0594e13cc6f427d2f511",
    ),
    _synthetic(
        "linear-2d",
        "a noisy line in 2-D (linear-Gaussian)",
        synthetic.LINEAR_2D,
        2,
        "24d94bc25bee0461f2507aac18cdcd7c575b4dad927a7da4a26d2e7bac91b807",
    ),
    _synthetic(
        "four-gaussians",
        "four equal Gaussian clusters in 2-D",
        synthetic.FOUR_GAUSSIANS,
        2,
        "1a50f62a8187f1ff7989899836d94ee477368d1bfe75f3b578c090104f239851",
    ),
    _synthetic(
        "circle",
        "a noisy circle in 2-D",
        synthetic.CIRCLE,
        2,
        "6f103e7d2cb5fc2aad661aaad3058e35a635854cd17a54cd4400b7215505522d",
    ),
)

DATASETS: dict[str, Source] = {source.name: source for source in (*_FILES, _DIGITS, *_SYNTHETIC)}


def catalogued_source(name: str) -> Source:
    """The named data set.

    Raises:
        UserError: for an unknown name, with the nearest one and all known names.
    """
    if name in DATASETS:
        return DATASETS[name]
    import difflib

    near = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(
        f"unknown data set {shorten_value(repr(name))}{hint}; known: {', '.join(DATASETS)}, "
        "or the path of your own .csv, .tsv, .parquet, .npy or .npz file or folder of images"
    )

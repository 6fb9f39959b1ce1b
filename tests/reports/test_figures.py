"""Figures match their data, refuse invalid input and are saved reproducibly."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cases import quick_rows
from iwae.errors import UserError
from iwae.reports import figures
from iwae.reports.figures.images import FRAME, GUTTER, MARGIN

RNG = np.random.default_rng(0)
IMAGES = RNG.random((7, 5, 4))
ROWS = [
    {
        "epoch": epoch,
        "train_bound": -100.0 - 100 / epoch,
        "validation_bound": -102.0 - 100 / epoch if epoch % 5 == 0 else None,
        "reconstruction": -80.0 - 100 / epoch,
        "kl": [15.0 + epoch / 10, 5.0],
        "active_units": [10 + epoch // 5, 3],
        "learning_rate": 1e-3 if epoch <= 10 else 1e-4,
    }
    for epoch in range(1, 31)
]
GRID = np.linspace(-3, 3, 61)
DENSITY = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi)
POINTS = RNG.normal(size=(50, 2))
BOUNDS = {
    "samples": ([50, 1, 5000], [-87.0, -90, -86], [0.2, 0.3, 0.1]),
    "annealing": ([10, 100], [-86.0, -85.5], [0.1, 0.1]),
}
SIGNALS = {
    "encoder": {"dreg": ([1, 4, 16], [0.1, 0.2, 0.4], [0.01] * 3), "stl": ([1], [0.0], [0.1])},
    "decoder": {"dreg": ([4, 1], [0.3, 0.2], [0.05, 0.4])},
}
BETAS = np.linspace(0, 2, 9)


def gaussian_curves(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rate and distortion [n, T] of z ~ N(0, 1), x ~ N(z, 1) at each of BETAS."""
    x, variance = np.linspace(-2, 2, n)[:, None], 1 / (1 + BETAS)
    mean = BETAS * variance * x
    rate = 0.5 * (variance + mean**2 - 1 - np.log(variance))
    return rate, 0.5 * (np.log(2 * np.pi) + (x - mean) ** 2 + variance)


CURVES = gaussian_curves(4)


def on_grid(mean: list[float], spread: list[float], q_mean: list[float]) -> SimpleNamespace:
    """A Gaussian posterior, a wider q and posterior draws, on a grid of one or two latents."""
    axes = tuple(np.linspace(-6, 6, 121 + 10 * i) for i in range(len(mean)))
    z = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def log_density(loc: list[float], scale: np.ndarray) -> np.ndarray:
        each = -0.5 * ((z - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        return each.sum(axis=-1)

    p, q = log_density(mean, np.array(spread)), log_density(q_mean, 1.5 * np.array(spread))
    draws = np.random.default_rng(0).normal(mean, spread, (200, len(mean)))
    return SimpleNamespace(axes=axes, log_posterior=p, log_q=q, draws=draws)


ON_LINE, ON_PLANE = on_grid([1.0], [0.5], [0.5]), on_grid([1.0, -2.0], [0.5, 0.25], [0.5, -1.8])


def all_filters(weights, most=9):
    """A figure of filters whose pixels all vary."""
    return figures.filters(weights, varying=np.ones(weights.shape[1:], bool), most=most)


def latent_map(labels, classes, outliers):
    """A latent map of POINTS with labels and marked outliers."""
    more = {"outliers": outliers, "outlier_name": "low", "title": "points"}
    return figures.latent_map(POINTS, ("a", "b"), labels=labels, classes=classes, **more)


ALL_FIGURES = {
    "image_grid": lambda: figures.image_grid(IMAGES, title="images"),
    "samples": lambda: figures.samples(IMAGES, np.rint(IMAGES)),
    "reconstructions": lambda: figures.reconstructions(IMAGES, IMAGES),
    "training_strip": lambda: figures.training_strip(IMAGES[None] ** [[[[1]]], [[[2]]]], [1, 3]),
    "filters": lambda: all_filters(IMAGES - 0.5),
    "training_curves": lambda: figures.training_curves(ROWS),
    "log_variance_histogram": lambda: figures.log_variance_histogram([np.array([0, 0.001])], 0.01),
    "density_1d": lambda: figures.density_1d(GRID, {"true": DENSITY}, data=POINTS[:, 0]),
    "scatter_2d": lambda: figures.scatter_2d(POINTS, POINTS + 0.1),
    "latent_map": lambda: latent_map(np.arange(50) % 9, "abcdefghi", POINTS[:, 0] > 1),
    "bounds_against_budget": lambda: figures.bounds_against_budget(BOUNDS),
    "rate_distortion_curve": lambda: figures.rate_distortion_curve(BETAS, *CURVES),
    "signal_to_noise": lambda: figures.signal_to_noise(SIGNALS, {}),
    "posterior_panels": lambda: figures.posterior_panels([ON_PLANE, ON_LINE], ["a", "b"]),
}


def page(figure: Figure, folder: Path) -> np.ndarray:
    """The saved figure, uint8 [height, width, 3]."""
    figures.save_figure(figure, folder / "page.png")
    with Image.open(folder / "page.png") as image:
        return np.asarray(image.convert("RGB"))


def texts(figure: Figure) -> str:
    """All text of a figure."""
    found = figure.findobj(mpl.text.Text)
    return "\n".join(text.get_text() for text in found)


def line(figure: Figure, label: str) -> np.ndarray:
    """The points [n, 2] of the line whose label starts with `label`."""
    for axes in figure.axes:
        for candidate in axes.get_lines():
            if str(candidate.get_label()).startswith(label):
                return candidate.get_xydata()
    raise AssertionError(f"no line {label!r}")


def noise(*shape: int) -> np.ndarray:
    """Random images in [0, 1] without the grey of the frame, so that `tiles` can find them."""
    levels = RNG.integers(0, 255, shape)
    return (levels + (levels >= FRAME[0])) / 255


def tiles(picture: np.ndarray, height: int) -> list[tuple[int, int, np.ndarray]]:
    """The top, left and pixels in [0, 1] of each image of `height` rows, in reading order.

    Fails unless every pixel is drawn as a square of one colour.
    """
    page = picture[..., 0].astype(int)
    framed = page == FRAME[0]
    corner = ~framed[1:, 1:] & framed[:-1, 1:] & framed[1:, :-1] & framed[:-1, :-1]
    found = []
    for top, left in np.argwhere(corner) + 1:
        block = page[top:, left:][: np.argmax(framed[top:, left]), : np.argmax(framed[top, left:])]
        if not block.size or len(block) % height:
            continue  # white outside the frame
        scale = len(block) // height
        image = block[::scale, ::scale]
        assert np.array_equal(block, image.repeat(scale, 0).repeat(scale, 1))
        found.append((int(top), int(left), image / 255))
    return found


# Saving


FORMAT_CASES = [(suffix, name) for suffix in (".png", ".pdf", ".svg") for name in ALL_FIGURES]


@pytest.mark.parametrize(
    ("suffix", "name"),
    quick_rows(
        FORMAT_CASES,
        *(FORMAT_CASES.index((".svg", name)) for name in ("training_curves", "scatter_2d")),
        *(FORMAT_CASES.index((suffix, "density_1d")) for suffix in (".png", ".pdf")),
    ),
)
def test_figures_are_saved_reproducibly(suffix, name, tmp_path):
    path = tmp_path / f"x{suffix}"
    one, saved = ALL_FIGURES[name](), []
    for figure in (one, one, ALL_FIGURES[name]()):
        figures.save_figure(figure, path)
        saved.append(path.read_bytes())
    first = saved[0]
    assert saved == [first] * 3
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert first.startswith(start)
    assert not any(metadata in first for metadata in (b"CreationDate", b"<dc:date>", b"Software"))


@pytest.mark.parametrize("name", ALL_FIGURES)
def test_every_figure_has_content_and_a_margin(name, tmp_path):
    pixels = page(ALL_FIGURES[name](), tmp_path)
    assert pixels.shape[0] > 100
    assert pixels.shape[1] > 100
    border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in border)
    assert (pixels != 255).any(axis=-1).mean() > 0.005


def test_saving_ignores_matplotlib_settings(tmp_path):
    figure = figures.scatter_2d(POINTS, POINTS)
    expected = page(figure, tmp_path)
    assert np.allclose(expected.shape[1::-1], figure.get_size_inches() * 150, atol=1)
    with mpl.rc_context({"savefig.bbox": "tight", "savefig.pad_inches": 1, "savefig.dpi": 50}):
        assert np.array_equal(page(figure, tmp_path), expected)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def fail(_self, name, **_options):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save_figure(figures.image_grid(IMAGES), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_animation_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.gif"
    path.write_bytes(b"old")

    def fail(_self, name, **_options):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save_animation([np.zeros((4, 4, 3), np.uint8)], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'x.jpg'.*\.png, \.pdf or \.svg"):
        figures.save_figure(figures.image_grid(IMAGES), tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


def test_animation_stores_exact_frames_and_durations(tmp_path):
    course = RNG.random((5, 4, 8, 8))
    frames = figures.training_frames(course, [0, 1, 4, 13, 3280])
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in frames)
    figures.save_animation(frames, tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        for number, frame in enumerate(frames):
            film.seek(number)
            assert np.array_equal(np.asarray(film.convert("RGB")), frame)
            assert film.info["duration"] == (2000 if number == 4 else 300)
    saved = (tmp_path / "x.gif").read_bytes()
    figures.save_animation(frames, tmp_path / "x.gif")
    assert (tmp_path / "x.gif").read_bytes() == saved


def test_frames_of_a_tiny_image_have_equal_sizes():
    """The longest title is wider than the image."""
    frames = figures.training_frames(RNG.random((2, 1, 2, 2)), [1, 123456789])
    assert frames[0].shape == frames[1].shape
    assert not np.array_equal(frames[0][:30], frames[1][:30])  # the titles differ


def test_figures_avoid_pyplot_jax_and_global_settings():
    program = (
        "import sys, matplotlib as mpl, numpy as np; before = mpl.rcParams.copy()\n"
        "from iwae.reports import figures\n"
        "f = figures.training_curves([{'epoch': i, 'train_bound': -i} for i in (1, 2)])\n"
        "import tempfile, pathlib\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    for suffix in ('png', 'svg', 'pdf'):\n"
        "        figures.save_figure(f, pathlib.Path(folder) / ('x.' + suffix))\n"
        "    figures.save_figure(figures.image_grid(np.ones((3, 2, 2))), folder + '/y.png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
        "assert 'jax' not in sys.modules, 'jax'\n"
        "keys = [key for key in before if key != 'backend']  # reading it imports pyplot\n"
        "changed = [key for key in keys if before[key] != mpl.rcParams[key]]\n"
        "assert not changed, changed\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_figures_can_be_made_and_saved_in_threads(tmp_path):
    def make(name):
        figures.save_figure(ALL_FIGURES[name](), tmp_path / f"{name}.svg")
        return (tmp_path / f"{name}.svg").read_bytes()

    alone = [make(name) for name in ALL_FIGURES]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, ALL_FIGURES)) == alone


# Images


@pytest.mark.parametrize("shape", [(1, 8, 8), (7, 5, 4), (3, 28, 28), (200, 8, 8), (9, 1, 30)])
def test_image_grid_is_exact_to_the_pixel(shape, tmp_path):
    """No image is blurred, resampled, shifted by a fraction of a pixel, misplaced or missing."""
    images = noise(*shape)
    found = tiles(page(figures.image_grid(images, title="a title"), tmp_path), shape[1])
    assert np.array_equal([image for *_, image in found], images)


def test_grey_levels_are_rounded_to_the_nearest(tmp_path):
    ((*_, image),) = tiles(page(figures.image_grid(np.full((1, 2, 2), 0.999)), tmp_path), 2)
    assert (image == 1).all()


def test_image_grid_has_the_requested_columns(tmp_path):
    found = tiles(page(figures.image_grid(noise(7, 4, 4), columns=3), tmp_path), 4)
    tops, lefts = np.array([place[:2] for place in found]).T
    assert [len(np.unique(tops)), len(np.unique(lefts))] == [3, 3]
    found = tiles(page(figures.image_grid(noise(2, 4, 4), columns=9), tmp_path), 4)
    assert found[0][0] == found[1][0] == MARGIN + GUTTER


@pytest.mark.parametrize(
    ("shape", "columns"), [((100, 8, 8), 10), ((200, 8, 8), 20), ((20, 2, 40), 1), ((5, 9, 3), 5)]
)
def test_image_grids_are_roughly_square_and_filled(shape, columns, tmp_path):
    found = tiles(page(figures.image_grid(noise(*shape)), tmp_path), shape[1])
    assert len({left for _, left, _ in found}) == columns


def test_samples_show_means_left_and_draws_right(tmp_path):
    means, draws = noise(2, 6, 4, 4)
    picture = page(figures.samples(means, draws), tmp_path)
    found = tiles(picture, 4)
    half = picture.shape[1] // 2
    assert np.array_equal([image for _, left, image in found if left < half], means)
    assert np.array_equal([image for _, left, image in found if left > half], draws)


def test_reconstructions_are_below_their_originals(tmp_path):
    first, second = noise(2, 4, 4, 4)
    figure = figures.reconstructions(first, second, columns=2)
    found = tiles(page(figure, tmp_path), 4)
    expected = [*first[:2], *second[:2], *first[2:], *second[2:]]
    assert np.array_equal([image for *_, image in found], expected)
    tops = sorted({top for top, *_ in found})
    near, far, again = np.diff(tops)
    assert near == again < far
    assert [word for word in texts(figure).split() if word.isalpha()] == ["data", "model"] * 2


def test_inputs_are_between_originals_and_reconstructions(tmp_path):
    first, second, third = noise(3, 4, 4, 4)
    figure = figures.reconstructions(first, third, inputs=second, columns=2)
    rows = [first[:2], second[:2], third[:2], first[2:], second[2:], third[2:]]
    found = tiles(page(figure, tmp_path), 4)
    assert np.array_equal([image for *_, image in found], np.concatenate(rows))
    labels = [word for word in texts(figure).split() if word.isalpha()]
    assert labels == ["data", "input", "model"] * 2


def test_training_strip_has_a_labelled_row_per_epoch_below_the_data(tmp_path):
    course, data = noise(3, 4, 6, 6), noise(4, 6, 6)
    epochs = np.array([0, 40, 3280])
    figure = figures.training_strip(course, epochs, data=data)
    found = tiles(page(figure, tmp_path), 6)
    assert np.array_equal([image for *_, image in found], [*data, *course.reshape(12, 6, 6)])
    assert len({top for top, *_ in found}) == 4
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    assert [text.get_text() for text in labels] == ["data", "epoch 0", "40", "3280"]
    assert np.all(np.diff([text.get_position()[1] for text in labels]) > 0)  # downwards
    for tile, frame in zip(course, figures.training_frames(course, epochs, data=data), strict=True):
        pairs = [*data[:2], *tile[:2], *data[2:], *tile[2:]]
        assert np.array_equal([image for *_, image in tiles(frame, 6)], pairs)


def test_filters_are_blue_below_zero_white_at_zero_and_red_above(tmp_path):
    weights = np.stack([np.full((4, 4), v) for v in (-2.0, 0.0, 1.0)])
    picture = page(all_filters(weights), tmp_path).astype(int)
    blue, red, white = (picture[top + 9, left + 9] for top, left, _ in tiles(picture, 4))
    assert blue[2] > blue[0] + 50
    assert red[0] > red[2] + 50
    assert white.min() > 240


def test_filters_are_sorted_by_size_over_varying_pixels(tmp_path):
    weights = np.array([1.0, 3.0, -2.0])[:, None, None] * np.ones((3, 4, 4))
    weights[:, 0, 0] = [100, 0, -100]
    varying = np.ones((4, 4), bool)
    varying[0, 0] = False
    figure = figures.filters(weights, varying=varying, most=2)
    picture = page(figure, tmp_path).astype(int)
    places = tiles(picture, 4)
    assert len(places) == 2
    first, second = (picture[top + 100, left + 100] for top, left, _ in places)
    assert first[0] > first[2] + 50  # the red one is three
    assert second[2] > second[0] + 50
    assert max(first[2], second[0]) < 120  # both at the end of the scale
    assert all((picture[top + 9, left + 9] == 216).all() for top, left, _ in places)
    assert "hardly vary" in texts(figure)
    assert "hardly vary" not in texts(all_filters(weights))


def test_long_title_fits(tmp_path):
    picture = page(figures.image_grid(IMAGES[:1], title="a title that is long " * 5), tmp_path)
    assert (picture[:, :10] == 255).all()
    assert (picture[:, -10:] == 255).all()
    assert picture.shape[1] > 800


NAN = np.where(np.arange(IMAGES.size).reshape(IMAGES.shape) == 3, np.nan, IMAGES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.image_grid(NAN), "images has 1 of 140 values that are NaN"),
        (lambda: figures.image_grid(IMAGES[0]), r"images must have the axes \[n, h, w\]"),
        (lambda: figures.image_grid(IMAGES[:0]), "images is empty"),
        (lambda: figures.image_grid(2 * IMAGES), r"images must be in \[0, 1\]"),
        (lambda: figures.image_grid(IMAGES - 0.5), r"images must be in \[0, 1\]"),
        (lambda: figures.image_grid(IMAGES + 0j), "images must be an array of numbers"),
        (lambda: figures.image_grid(IMAGES, columns=0), "columns must be at least 1"),
        (lambda: figures.image_grid(np.zeros((900, 28, 28)), columns=1), "draw fewer"),
        (lambda: figures.samples(IMAGES, IMAGES[:3]), "means and draws must have the same shape"),
        (lambda: figures.reconstructions(IMAGES, IMAGES[:3]), "must have the same shape"),
        (lambda: figures.reconstructions(IMAGES, IMAGES, columns=0), "columns must be at least 1"),
        (lambda: figures.training_strip(IMAGES, [1]), r"frames must have the axes \[t, n, h, w\]"),
        (lambda: figures.training_strip(IMAGES[None], [1, 2]), "1 frames, but 2 epochs"),
        (lambda: figures.training_frames(IMAGES[None], [np.nan]), "epochs has 1 of 1"),
        (lambda: all_filters(NAN), "weights has 1 of 140"),
        (lambda: figures.training_strip(IMAGES[None], [1], data=IMAGES[:2]), "data and a frame"),
        (lambda: figures.reconstructions(IMAGES, IMAGES, inputs=IMAGES[:2]), "and inputs must"),
    ],
)
def test_invalid_images_are_refused(call, message):
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# Charts


def test_training_curves_match_the_rows():
    figure = figures.training_curves(ROWS)
    epochs = np.array([row["epoch"] for row in ROWS])
    assert np.array_equal(line(figure, "training"), np.stack([epochs, -100 - 100 / epochs], 1))
    assert np.array_equal(line(figure, "validation")[:, 0], epochs[4::5])
    assert np.array_equal(line(figure, "log p(x | z)")[:, 1], -80 - 100 / epochs)
    assert np.array_equal(line(figure, "layer 1")[:, 1], 15 + epochs / 10)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["bound (nats)", "reconstruction (nats)", "KL (nats)", "active units"]
    assert "training (last −103.33)" in texts(figure)


def test_learning_rate_step_is_marked_in_every_panel():
    figure = figures.training_curves(ROWS)
    for axes in figure.axes:
        dotted = [x.get_xdata()[0] for x in axes.get_lines() if x.get_linestyle() == ":"]
        assert dotted == [10]  # the last epoch at the old rate
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text() == "learning rate changes to 0.0001"


def test_learning_rate_changing_every_epoch_has_its_own_panel():
    rows = [row | {"learning_rate": 1e-3 * 0.9 ** row["epoch"]} for row in ROWS]
    figure = figures.training_curves(rows)
    assert figure.axes[-1].get_ylabel() == "learning rate"
    assert not [x for x in figure.axes[0].get_lines() if x.get_linestyle() == ":"]


def test_active_units_axis_starts_at_zero():
    *_, axes = figures.training_curves(ROWS[20:]).axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 15


def test_replicates_are_thin_lines_around_their_mean():
    rows = [
        {
            "epoch": epoch,
            "train_bound": [-90.0 - epoch, -92.0 - epoch, -97.0 - epoch],
            "kl": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        }
        for epoch in (1, 2, 3)
    ]
    figure = figures.training_curves(rows)
    assert np.allclose(line(figure, "training")[:, 1], [-94, -95, -96])
    assert np.allclose(line(figure, "layer 2")[:, 1], 4)
    assert len(figure.axes[0].get_lines()) == 1 + 3
    assert len(figure.axes[1].get_lines()) == 2 * (1 + 3)
    assert "one of 3 replicates" in texts(figure)


def test_stopped_replicate_is_left_out_of_the_mean():
    bounds = [[-9.0, -5.0], [-8.0, None], [None, None], [-6.0, None]]
    rows = [{"epoch": epoch, "train_bound": bound} for epoch, bound in enumerate(bounds, 1)]
    figure = figures.training_curves(rows)
    assert np.array_equal(line(figure, "training"), [[1, -7], [2, -8], [4, -6]])
    thin = [one.get_ydata() for one in figure.axes[0].get_lines()[1:]]
    assert np.array_equal(thin, [[-9, -8, -6], [-5, np.nan, np.nan]], equal_nan=True)
    with pytest.raises(UserError, match="row 1: 'train_bound' is NaN"):
        figures.training_curves([{"epoch": 1, "train_bound": [None, float("nan")]}])


def test_only_recorded_quantities_are_drawn():
    figure = figures.training_curves([{"validation_bound": -3.0}, {"validation_bound": -2.0}])
    (axes,) = figure.axes
    assert axes.get_xlabel() == "record"
    assert np.array_equal(line(figure, "validation"), [[1, -3], [2, -2]])


def test_later_rows_replace_earlier_ones_of_the_same_epoch():
    values = ((1, -9.0), (3, -5.0), (2, -8.0), (2, -7.0), (3, -6.0))
    rows = [{"epoch": epoch, "train_bound": bound} for epoch, bound in values]
    figure = figures.training_curves(rows)
    assert np.array_equal(line(figure, "training"), [[1, -9], [2, -7], [3, -6]])


def test_long_training_has_a_log_axis_and_limits_around_its_end():
    rows = [{"epoch": e, "train_bound": -90 - 900 / e**2} for e in range(1, 1001)]
    (axes,) = figures.training_curves(rows).axes
    assert axes.get_xscale() == "log"
    assert -300 < axes.get_ylim()[0] < -90
    assert axes.get_ylim()[1] > -90
    (axes,) = figures.training_curves(rows[:50]).axes
    assert axes.get_xscale() == "linear"
    (axes,) = figures.training_curves(rows[:20]).axes
    assert axes.get_ylim()[0] < -990  # a short training is shown in full


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no training curve"),
        ([{"epoch": 1, "seconds": 3}], "no training curve"),
        ([{"epoch": 1, "train_bound": float("nan")}], "row 1: 'train_bound' is NaN"),
        ([{"epoch": 1, "train_bound": "low"}], "row 1: 'train_bound' is not a number"),
        ([{"epoch": 1, "train_bound": [[-1.0]]}], "row 1: 'train_bound' has the shape"),
        ([{"epoch": 1, "kl": []}], "row 1: 'kl' has the shape"),
        ([{"epoch": float("nan"), "kl": [1.0]}], "the epoch in row 1 has 1 of 1"),
        ([{"epoch": 1, "kl": [1.0]}, {"epoch": 2, "kl": [1.0, 2.0]}], "'kl' changes"),
    ],
)
def test_invalid_rows_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        figures.training_curves(rows)


def heights(figure: Figure, panel: int = 0) -> list[tuple[float, float]]:
    """The left edge and height of each non-empty bar."""
    bars = figure.axes[panel].patches
    return [(bar.get_x(), bar.get_height()) for bar in bars if bar.get_height() > 0]


def test_log_variances_are_split_at_the_threshold():
    layer = np.array([0, 1e-30, 1e-4, 0.01, 0.0100001, 1.0, 2.0])
    figure = figures.log_variance_histogram([layer, np.ones(3)], 0.01)
    bars = heights(figure)
    assert sum(height for left, height in bars if left < -2 - 1e-9) == 4
    assert sum(height for left, height in bars if left >= -2 - 1e-9) == 3
    assert bars[0] == (pytest.approx(-10), 2)  # at the floor, which the figure states
    written = texts(figure)
    assert "4 inactive" in written
    assert "3 active" in written
    assert "2 below 1e-10" in written
    assert "units of layer 2" in written
    assert "log10" in written
    (threshold,) = figure.axes[0].get_lines()
    assert np.allclose(threshold.get_xdata(), -2)


def test_any_threshold_is_a_bin_edge():
    figure = figures.log_variance_histogram([np.array([0.02, 0.04])], threshold=0.03)
    assert [h for _, h in heights(figure)] == [1, 1]
    edge = np.log10(0.03)
    assert all(left + 0.25 <= edge + 1e-9 or left >= edge - 1e-9 for left, _ in heights(figure))


def test_data_histogram_is_scaled_as_a_density():
    data = np.concatenate([np.linspace(-1, 1, 300), np.full(100, 50.0)])
    figure = figures.density_1d(GRID, {"true": DENSITY, "model": 2 * DENSITY}, data=data)
    bars = figure.axes[0].patches
    area = sum(bar.get_width() * bar.get_height() for bar in bars)
    assert area == pytest.approx(0.75)  # a quarter of the data are beyond the grid
    assert np.array_equal(line(figure, "model"), np.stack([GRID, 2 * DENSITY], 1))


def test_scatter_panels_share_their_limits():
    figure = figures.scatter_2d(POINTS, 3 * POINTS[:10])
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    assert np.allclose(left.collections[0].get_offsets(), POINTS)
    assert np.allclose(right.collections[-1].get_offsets(), 3 * POINTS[:10])
    assert left.get_xlim()[0] < 3 * POINTS[:10, 0].min()


def drawn_points(figure: Figure) -> dict[str, np.ndarray]:
    """The points [n, 2] of each label and of the outliers, by legend label."""
    (axes,) = figure.axes
    return {str(one.get_label()): np.asarray(one.get_offsets()) for one in axes.collections}


@pytest.mark.parametrize("count", [2, 9, 30])
def test_labels_have_distinct_colours_and_outliers_have_rings(count):
    labels, classes = np.arange(50) % count, [f"class {i}" for i in range(count)]
    low = POINTS[:, 1] < -1
    figure = latent_map(labels, classes, low)
    drawn = drawn_points(figure)
    assert np.allclose(drawn.pop(f"low ({low.sum()} of 50)"), POINTS[low])
    assert list(drawn) == classes
    for label, points in enumerate(drawn.values()):
        assert np.allclose(points, POINTS[labels == label])
    colours = {tuple(one.get_facecolor()[0]) for one in figure.axes[0].collections[:count]}
    assert len(colours) == count
    assert sum(len(legend.get_texts()) for legend in figure.legends) == 1 + count * (count <= 20)


def test_points_without_labels_have_no_legend():
    figure = latent_map(None, (), np.zeros(50, bool))
    assert np.allclose(np.concatenate([*drawn_points(figure).values()]), POINTS)
    assert not figure.legends


@pytest.mark.parametrize("points", [np.zeros((1, 2)), np.stack([np.arange(9.0), np.zeros(9)], 1)])
def test_points_on_a_line_can_be_drawn(points, tmp_path):
    assert page(figures.scatter_2d(points, points), tmp_path).size


def legend_of(axes: mpl.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_bounds_are_drawn_by_budget_with_error_bars():
    figure = figures.bounds_against_budget(BOUNDS)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert np.array_equal(line(figure, "samples"), [[1, -90], [50, -87], [5000, -86]])
    assert np.array_equal(line(figure, "annealing"), [[10, -86], [100, -85.5]])
    for container, errors in zip(axes.containers, [[0.3, 0.2, 0.1], [0.1, 0.1]], strict=True):
        segments = container[2][0].get_segments()
        assert np.allclose([np.ptp(s[:, 1]) / 2 for s in segments], errors)
    assert legend_of(axes) == ["samples", "annealing"]
    (axes,) = figures.bounds_against_budget({"a": BOUNDS["samples"]}).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "50", "5000"]


def test_differences_are_drawn_around_the_reference_bound():
    figure = figures.bounds_against_budget(BOUNDS, reference=("L_9", -85.5, 0.125))
    assert line(figure, "L_9 = −85.50 ± 0.12 nats")[:, 1].tolist() == [0, 0]
    (axes,) = figure.axes
    assert axes.get_ylabel() == "difference to L_9 (nats)"


def test_long_legend_labels_stay_on_the_page(tmp_path):
    names = [f"annealing, 1,000 examples, from the {what}, 16 chains" for what in ("q", "prior")]
    picture = page(
        figures.bounds_against_budget(dict(zip(names, BOUNDS.values(), strict=True))), tmp_path
    )
    assert (picture[:, :5] == 255).all()
    assert (picture[..., 0] < 100).any(axis=0)[-100:].any()  # letters at the right


def test_rate_distortion_curve_of_means_touches_its_tangent_at_beta_1():
    figure = figures.rate_distortion_curve(BETAS, *CURVES)
    (axes,) = figure.axes
    rate, distortion = CURVES
    curve = line(figure, "mean of 4 examples")
    assert np.allclose(curve, np.stack([rate.mean(axis=0), distortion.mean(axis=0)], axis=1))
    (band,) = axes.collections[:1]
    edges = {round(float(x), 6): [] for x in curve[:, 0]}
    for x, y in band.get_paths()[0].vertices:
        edges[round(float(x), 6)].append(y)
    errors = distortion.std(axis=0, ddof=1) / 2
    half_widths = [np.ptp(ys) / 2 for ys in edges.values()]
    assert np.allclose(half_widths, errors)
    # At beta = 1 (the fifth of nine), with the errors of both; the sum is log N(x; 0, 2).
    # Tripled rates have errors unlike those of the distortions.
    (wide,) = figures.rate_distortion_curve(BETAS, 3 * rate, distortion).axes
    cross = wide.containers[0]
    assert np.allclose(cross.lines[0].get_xydata(), [curve[4] * [3, 1]])
    sizes = sum(np.ptp(bar.get_segments()[0], axis=0) / 2 for bar in cross.lines[2])
    assert np.allclose(sizes, [3 * rate[:, 4].std(ddof=1) / 2, errors[4]])
    surprise = 0.5 * (np.log(4 * np.pi) + np.linspace(-2, 2, 4) ** 2 / 2)
    total, error = surprise.mean(), surprise.std(ddof=1) / 2
    assert f"rate + distortion = {total:.2f} ± {error:.2f} nats" in texts(figure)
    (dotted,) = [one for one in axes.get_lines() if one.get_linestyle() == ":"]
    assert dotted.get_slope() == -1
    assert np.allclose(dotted.get_xy1(), curve[4])
    assert (curve.sum(axis=1) > total - 1e-9).all()  # so the line touches, and does not cross
    assert "β = 1" in texts(figure)


def test_rate_distortion_curve_omits_unknown_annotations():
    rate, distortion = CURVES
    figure = figures.rate_distortion_curve(BETAS[:4], rate[:, :4], distortion[:, :4])
    assert "β" not in texts(figure)
    assert "rate + distortion" not in texts(figure)
    figure = figures.rate_distortion_curve(BETAS, rate[:1], distortion[:1])
    assert "±" not in texts(figure)
    assert "error" not in texts(figure)
    assert not figure.axes[0].collections


def test_posterior_of_one_latent_is_drawn_as_curves_over_a_histogram():
    (axes,) = figures.posterior_panels([ON_LINE], ["one"]).axes
    p, q = (one.get_xydata() for one in axes.get_lines())
    assert np.allclose(p, np.stack([*ON_LINE.axes, np.exp(ON_LINE.log_posterior)], axis=1))
    assert np.allclose(q, np.stack([*ON_LINE.axes, np.exp(ON_LINE.log_q)], axis=1))
    area = sum(bar.get_width() * bar.get_height() for bar in axes.patches)
    assert area == pytest.approx(1)
    low, high = axes.get_xlim()
    # Of q = N(0.5, 0.75^2), 99.9% lie within 3.3 standard deviations.
    assert low == pytest.approx(0.5 - 3.29 * 0.75, abs=0.4)
    assert high == pytest.approx(0.5 + 3.29 * 0.75, abs=0.4)


def test_posterior_of_two_latents_has_50_and_95_per_cent_contours():
    figure = figures.posterior_panels([ON_PLANE], ["test example 7"])
    (axes,) = figure.axes
    heat, dots, p, q = axes.collections
    assert np.allclose(np.asarray(heat.get_array()).T, np.exp(ON_PLANE.log_posterior))
    assert np.allclose(dots.get_offsets(), ON_PLANE.draws)  # first latent across
    for contours, mean, spread in (
        (p, [1.0, -2.0], [0.5, 0.25]),
        (q, [0.5, -1.8], [0.75, 0.375]),
    ):
        outer, inner = (path.vertices for path in contours.get_paths())
        for vertices, mass in ((outer, 0.95), (inner, 0.5)):
            squares = (((vertices - mean) / spread) ** 2).sum(axis=1)
            # Of a Gaussian on a plane, 1 - exp(-r^2 / 2) lies within r standard deviations.
            assert np.allclose(1 - np.exp(-squares / 2), mass, atol=0.03)
    assert "test example 7" in texts(figure)
    assert axes.get_xlim()[0] > -3  # a part of the grid
    assert axes.get_xlim()[0] < ON_PLANE.draws[:, 0].min()
    assert axes.get_ylabel() == "second latent"


@pytest.mark.parametrize("grid", [ON_LINE, ON_PLANE])
def test_degenerate_posterior_can_be_drawn(grid, tmp_path):
    spike = np.full(grid.log_posterior.shape, -np.inf)
    spike.flat[spike.size // 2] = 3.0
    changed = SimpleNamespace(**{**vars(grid), "log_posterior": spike, "log_q": 0 * spike.clip(0)})
    assert page(figures.posterior_panels([changed], ["one"]), tmp_path).size


def posterior(log_q: np.ndarray) -> Figure:
    return figures.posterior_panels([SimpleNamespace(**vars(ON_PLANE) | {"log_q": log_q})], ["one"])


def bounds(budget: list, mean: list, stderr: list) -> Figure:
    return figures.bounds_against_budget({"a": (budget, mean, stderr)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: figures.log_variance_histogram([np.array([np.nan])], 1.0),
            r"variances\[0\] has 1",
        ),
        (lambda: figures.density_1d(GRID, {"a": NAN}, data=GRID), "density 'a' has 1 of 140"),
        (lambda: figures.scatter_2d(POINTS, POINTS[:0]), "samples is empty"),
        (lambda: bounds([1], [np.nan], [1.0]), "the mean of 'a' has 1 of 1"),
        (lambda: bounds([], [], []), "the budget of 'a' is empty"),
        (lambda: figures.rate_distortion_curve(BETAS, *np.ones((2, 9))), r"axes \[n, t\]"),
        (lambda: figures.rate_distortion_curve(BETAS[:3], *CURVES), "betas and the rates"),
        (
            lambda: figures.rate_distortion_curve(BETAS, CURVES[0], CURVES[1][:2]),
            "rate and distortion must have the same shape",
        ),
        (lambda: posterior(ON_PLANE.log_q * np.nan), "density of log_q has .* NaN"),
        (lambda: posterior(ON_PLANE.log_q + 1e6), "density of log_q has .* infinite"),
    ],
)
def test_invalid_values_are_refused(call, message):
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# Signal and noise of gradients


def test_signal_to_noise_is_drawn_against_k_with_theoretical_slopes():
    encoder, decoder = figures.signal_to_noise(SIGNALS, {}).axes
    assert (encoder.get_xscale(), encoder.get_yscale()) == ("log", "log")
    assert "encoder" in encoder.get_ylabel()
    (curve, _) = encoder.containers
    assert curve.lines[0].get_xydata().tolist() == [[1, 0.1], [4, 0.2], [16, 0.4]]
    assert decoder.containers[0].lines[0].get_xdata().tolist() == [1, 4]
    dotted = [line.get_xydata() for line in encoder.lines if line.get_linestyle() == ":"]
    slopes = [np.diff(np.log(line[:, 1]))[0] / np.diff(np.log(line[:, 0]))[0] for line in dotted]
    assert sorted(slopes) == pytest.approx([-0.5, 0.5])


def test_legend_gives_known_powers_and_their_first_k():
    powers = {"encoder": {"dreg": (-0.456, 0.0321)}}
    encoder, decoder = figures.signal_to_noise(SIGNALS, powers, power_from=4).axes
    labels = [text.get_text() for text in encoder.get_legend().get_texts()]
    assert labels == ["dreg: \N{MINUS SIGN}0.46 ± 0.03", "stl"]
    assert encoder.get_legend().get_title().get_text().endswith("from k = 4:")
    assert [text.get_text() for text in decoder.get_legend().get_texts()] == ["dreg"]
    assert decoder.get_legend().get_title().get_text() == ""


def test_backward_particle_variants_differ_but_share_a_colour():
    curve = ([4, 16], [0.1, 0.2], [0.01] * 2)
    names = ("dreg", "dreg, backward 2", "dreg, backward 8", "stl", "stl, backward 2")
    (axes,) = figures.signal_to_noise({"encoder": dict.fromkeys(names, curve)}, {}).axes
    lines = {str(one.lines[0].get_label()): one.lines[0] for one in axes.containers}
    assert tuple(lines) == names
    colours = {name: one.get_color() for name, one in lines.items()}
    assert len({colours[name] for name in names[:3]}) == 1
    assert colours["stl"] == colours["stl, backward 2"] != colours["dreg"]
    looks = {
        (one.get_color(), one.get_marker(), one.get_markerfacecolor()) for one in lines.values()
    }
    assert len(looks) == len(names)


def test_invalid_signals_are_refused():
    with pytest.raises(UserError, match="NaN or infinite"):
        figures.signal_to_noise({"encoder": {"dreg": ([1], [np.nan], [0.1])}}, {})
    with pytest.raises(UserError, match="no gradients"):
        figures.signal_to_noise({}, {})

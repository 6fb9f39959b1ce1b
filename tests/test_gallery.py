"""The pictures of a run: which there are for which data, and that they show what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import small
from iwae._types import UserError
from iwae.checkpoint import load_model
from iwae.data import load_dataset
from iwae.gallery import _density as density  # the figure behind density.png
from iwae.gallery import draw_run
from iwae.model import VAE
from small import finished

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALWAYS = {"training_curves.png", "log_variances.png"}


def names(paths):
    return {path.name for path in paths}


@pytest.fixture(scope="module")
def drawn():
    return draw_run(finished())


def test_images_have_all_the_pictures(drawn):
    strips = {f"training_{what}" for what in ("samples", "reconstructions")}
    assert names(drawn) == ALWAYS | {
        *("samples.png", "reconstructions.png", "filters_first_layer.png"),
        "filters_last_layer.png",
        *(f"{strip}.png" for strip in strips),
        *(f"{strip}.gif" for strip in strips),
    }
    assert {path.parent for path in drawn} == {finished() / "figures"}
    for path in drawn:
        with Image.open(path) as image:
            assert min(image.size) > 50
            assert len(np.unique(np.asarray(image.convert("L")))) > 3  # not blank
            if path.suffix == ".gif":
                assert image.n_frames == 5  # before the first epoch, and after each of four


def test_frames_are_of_the_same_draws_and_test_examples():
    frames = []
    for path in sorted((finished() / "frames").iterdir()):
        with np.load(path) as file:
            frames.append(dict(file))
    test = load_dataset(small.pictures(), validation=50).test
    assert len(frames) == 5
    for frame in frames:
        np.testing.assert_array_equal(frame["examples"], test[::3][:16])
        assert frame["samples"].shape == frame["reconstructions"].shape == (16, 16)
    errors = [np.abs(frame["reconstructions"] - frame["examples"]).mean() for frame in frames]
    assert errors[-1] < errors[0] - 0.03  # they get better in the course of training


def test_the_same_weights_give_the_same_pictures_and_others_do_not(drawn):
    before = {path.name: path.read_bytes() for path in drawn}
    assert {path.name: path.read_bytes() for path in draw_run(finished())} == before
    run = finished(**small.PATIENT)
    final, best = (
        {path.name: path.read_bytes() for path in draw_run(run, weights=weights)}
        for weights in ("final", "best")
    )
    same = {name for name in final if final[name] == best[name]}
    assert same == {name for name in final if name.startswith("training_")}


def made(run, dataset, dimensions, **options):
    """A run of a Gaussian model, not trained."""
    sizes = {"latent_sizes": (1,), "hidden_sizes": ((5,),)}
    model = VAE(dimensions, **sizes, observation="gaussian", key=jax.random.key(0))
    return small.by_hand(run, [model], dataset=dataset, validation=None, **sizes, **options)


def test_the_density_of_one_dimension_is_drawn_beside_the_truth(tmp_path):
    run = made(tmp_path / "run", "camel", 1)
    assert names(draw_run(run)) == {"log_variances.png", "density.png"}  # no metrics, no frames
    dataset = load_dataset("camel")
    (axes,) = density(load_model(run / "models" / "final-0"), dataset).axes
    lines = {line.get_label(): line.get_data() for line in axes.get_lines()}
    x, truth = lines["truth"]
    camel = sum(0.5 * np.exp(-2 * (x - m) ** 2) / np.sqrt(0.5 * np.pi) for m in (-1, 1))
    assert truth == pytest.approx(camel, rel=1e-6)
    x, modelled = lines["model"]
    assert np.trapezoid(modelled, x) == pytest.approx(1, abs=0.1)  # it is wider than the plot
    assert np.abs(modelled - truth).max() > 0.1


def test_points_in_the_plane_are_drawn_beside_samples(tmp_path):
    assert names(draw_run(made(tmp_path / "run", "circle", 2))) == {
        *("log_variances.png", "scatter.png")
    }


def test_other_data_have_the_pictures_that_make_sense(tmp_path):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(50, 3)) * 3)
    run = made(tmp_path / "run", str(tmp_path / "own.npy"), 3)
    assert names(draw_run(run)) == {"log_variances.png"}


def test_a_broken_model_has_no_pictures_but_an_error(tmp_path):
    """Better than a blank page."""
    model = load_model(finished() / "models" / "final-0")
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model)
    with pytest.raises(UserError):
        draw_run(small.by_hand(tmp_path / "run", [broken]))


def test_what_a_run_does_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        draw_run(tmp_path)
    with pytest.raises(UserError, match="has no best weights"):
        draw_run(small.unvalidated(), weights="best")

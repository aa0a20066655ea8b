"""What is unlike the training films: phantoms as films, and what is none."""

import os

import numpy as np
import pytest

from data_prep import degradations, fit_plausibility
from data_prep.phantoms import make_phantom
from r2c_gan.data import images, plausibility
from r2c_gan.data.plausibility import FEWEST, Plausibility, judge
from r2c_gan.errors import UserError

SIZE = 96


def film(number):
    """A phantom; every other one is degraded."""
    rng = np.random.default_rng([11, number])
    image = make_phantom(rng, SIZE).image
    if number % 2:
        image, _ = degradations.degrade(image, rng, "moderate")
    return image[..., None].astype("float32") * 2 - 1


@pytest.fixture(scope="module")
def films():
    return [film(number) for number in range(120)]


@pytest.fixture(scope="module")
def fitted(films):
    return plausibility.fit([plausibility.describe_film(image, k) for k, image in enumerate(films[:100])])


def warned(fitted, group):
    return [judge(fitted, np.ascontiguousarray(image))[1] is not None for image in group]


def test_films_pass(fitted, films):
    held_out = films[100:]
    assert np.mean(warned(fitted, held_out)) <= 0.1
    assert np.mean(warned(fitted, [image[:, ::-1] for image in held_out])) <= 0.1
    scores = [fitted.score(image) for image in held_out]
    for other in (lambda x: 0.3 * x + 0.5, lambda x: (x + 1) ** 0.7 - 1, lambda x: images.resize(x, 200, 150)):
        assert np.mean(warned(fitted, [other(image) for image in held_out])) <= 0.15
    np.testing.assert_allclose([fitted.score(0.3 * image + 0.5) for image in held_out], scores, rtol=1e-3)
    np.testing.assert_allclose([fitted.score(np.repeat(x, 3, axis=-1)) for x in held_out], scores, rtol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: -image,
        lambda image: np.rot90(image),
        lambda image: np.rot90(image, 3),
        lambda image: image[::-1],
        lambda image: image[: SIZE // 2, : SIZE // 2],
    ],
    ids=["negative", "left", "right", "upside down", "cropped"],
)
def test_films_that_are_not_as_they_should_be(change, fitted, films):
    judged = [judge(fitted, np.ascontiguousarray(change(image))) for image in films[100:]]
    assert np.mean([warning is not None for _, warning in judged]) >= 0.9
    score, warning = max(judged, key=lambda pair: pair[0])
    assert score > 1 and f"unlike the films that the model was trained on (unlikeness {score:.2f}" in warning


def test_what_is_no_film(fitted):
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:80, :90] / 90
    noise = [rng.uniform(-1, 1, (70, 70, 1)) for _ in range(5)]
    stripes = [np.sin(columns[..., None] * period) for period in (5, 20, 60)]
    ramps = [rows[..., None], -columns[..., None]]
    disk = [np.exp(-((rows - 0.4) ** 2 + (columns - 0.6) ** 2) * 40)[..., None]]
    assert all(warned(fitted, [*noise, *stripes, *ramps, *disk]))


@pytest.mark.parametrize("with_model", [True, False])
def test_blank_and_two_valued_pictures_are_named_without_a_model_too(with_model, fitted, films):
    model = fitted if with_model else None
    for value in (-1, 0.2, 1):
        assert judge(model, np.full((9, 7, 1), value, "float32"))[1].startswith("blank")
    mask = np.where(films[0] > 0.1, 1, -1).astype("float32")
    rng = np.random.default_rng(0)
    for picture in (mask, np.clip(mask + rng.normal(0, 0.01, mask.shape), -1, 1), 0.1 * mask):
        score, warning = judge(model, picture)
        assert warning.startswith("of two gray values") and (score is None) == (not with_model)
    assert judge(None, films[0]) == (None, None)


def test_saved_and_loaded(fitted, films, tmp_path):
    assert Plausibility.load(tmp_path) is None
    fitted.save(tmp_path / plausibility.FILE)
    loaded = Plausibility.load(tmp_path)
    assert [loaded.score(image) for image in films[:5]] == [fitted.score(image) for image in films[:5]]
    assert (tmp_path / plausibility.FILE).stat().st_size < 300_000


def test_damage_is_named(fitted, tmp_path):
    path = tmp_path / plausibility.FILE
    fitted.save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:5000], whole[:2000] + bytes(100) + whole[2100:], b"pickle"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"plausibility\.npz: damaged .*data_prep\.fit_plausibility"):
            Plausibility.load(tmp_path)
    arrays = dict(fitted.arrays)
    for name, other in (("tones", arrays["tones"] * np.nan), ("discriminants", np.zeros((3, 3), np.float32))):
        Plausibility({**arrays, name: other}).save(path)
        with pytest.raises(UserError, match="of another kind or version"):
            Plausibility.load(tmp_path)
    np.savez_compressed(path, tones=np.zeros(10**7, np.float32))
    with pytest.raises(UserError, match=r"damaged \(too large"):
        Plausibility.load(tmp_path)
    np.savez(path, tones=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        Plausibility.load(tmp_path)


def test_few_films_fit_nothing(films, tmp_path):
    few = [plausibility.describe_film(image, k) for k, image in enumerate(films[: FEWEST - 1])]
    assert plausibility.fit(few) is None
    assert plausibility.fit([*few, few[0]]) is not None


def test_program(films, tmp_path, monkeypatch, capsys):
    for number, image in enumerate(films[:FEWEST]):
        domain, label = ("trainA", "trainB")[number % 2], ("control", "covid")[number % 3 // 2]
        images.write_image(tmp_path / "set" / domain / label / f"{number}.png", image)
    path = tmp_path / "run" / "plausibility.npz"
    flags = {"datasets_dir": str(tmp_path / "set"), "output": str(path), "window": "auto", "readers": 2}

    def run(**changes):
        monkeypatch.setattr(fit_plausibility, "FLAGS", type("Flags", (), {**flags, **changes}))
        fit_plausibility.main()

    run()
    assert capsys.readouterr().out == f"{FEWEST} films -> {path}\n"
    assert Plausibility.load(tmp_path / "run").score(films[0]) < 1
    with pytest.raises(UserError, match=r"other\.npz: must be called plausibility\.npz"):
        run(output=str(tmp_path / "other.npz"))
    (tmp_path / "set" / "trainA" / "control" / "0.png").unlink()
    with pytest.raises(UserError, match="49 films; 50 are needed"):
        run()


def test_the_shipped_file():
    """It knows real films; the drawn ones are the nearest that comes with the package."""
    from r2c_gan.models import pretrained

    shipped = Plausibility.load(pretrained.FOLDER)
    rng = np.random.default_rng(0)
    assert all(warned(shipped, [rng.uniform(-1, 1, (128, 128, 1)) for _ in range(3)]))
    assert all(warned(shipped, [np.rot90(film(number)) for number in range(0, 10, 2)]))


@pytest.mark.skipif("R2C_GAN_XRAY_DIR" not in os.environ, reason="R2C_GAN_XRAY_DIR names no folder of radiographs")
def test_the_shipped_file_on_radiographs():
    from r2c_gan.models import pretrained

    shipped = Plausibility.load(pretrained.FOLDER)
    files = images.list_images(os.environ["R2C_GAN_XRAY_DIR"], recursive=True)[::16]
    films = [images.read_image(file, 1) for file in files]
    assert np.mean(warned(shipped, films)) <= 0.03
    assert np.mean(warned(shipped, [-image for image in films])) >= 0.98
    assert np.mean(warned(shipped, [np.rot90(image, 2) for image in films])) >= 0.95

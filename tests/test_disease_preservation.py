"""Preservation of disease: predictions against scikit-learn and hand counts, phantoms with contrast that is known."""

import json
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
from sklearn.metrics import cohen_kappa_score

from data_prep.phantoms import PhantomSet, make_phantom, write_dataset
from experiments.classifiers.compare import stages
from experiments.preservation import agreement as prediction_agreement
from experiments.preservation import figures as preservation_figures
from experiments.preservation import opacity_contrast
from experiments.preservation.agreement import agreement, prediction_changes
from experiments.preservation.opacity_contrast import Anatomy, anatomies, brightest_patch, contrast
from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain, reference_images
from r2c_gan.errors import UserError
from r2c_gan.restoration.restorer import Restorer

SIZE = 48

# --- Predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_kappa_against_scikit_learn(seed):
    first, second = np.random.default_rng(seed).random((2, 30)) < [[0.3], [0.6]]
    assert prediction_agreement.kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_agreement_by_hand():
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    second = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    result = agreement(first, second)
    assert result["table"] == [[4, 1], [1, 2]]
    assert (result["agreeing"]["count"], result["agreeing"]["n"], result["agreeing"]["share"]) == (6, 8, 0.75)
    assert result["agreeing"]["low"] < 0.75 < result["agreeing"]["high"]
    # Expected by chance: 3/8 * 3/8 + 5/8 * 5/8 = 34/64.
    assert result["kappa"]["value"] == pytest.approx((48 - 34) / (64 - 34))
    always = agreement(np.ones(5, bool), np.ones(5, bool))
    assert always["kappa"] == {"value": None, "low": None, "high": None}
    assert always["agreeing"]["share"] == 1


def test_changes_of_predictions_by_hand():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    poor = np.array([0.9, 0.2, 0.8, 0.1, 0.1, 0.7, 0.2, 0.6])
    restored = np.array([0.8, 0.9, 0.3, 0.2, 0.2, 0.3, 0.9, 0.8])
    clean = np.array([0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9])
    result = prediction_changes(labels, poor, restored, clean)

    def count(entry):
        return entry["count"], entry["n"]

    assert count(result["changes"]["covid"]["control_to_covid"]) == (1, 2)  # the second
    assert count(result["changes"]["covid"]["covid_to_control"]) == (1, 2)  # the third
    assert count(result["changes"]["control"]["control_to_covid"]) == (1, 2)  # the seventh
    assert count(result["changes"]["control"]["covid_to_control"]) == (1, 2)  # the sixth
    assert count(result["against_clean"]["poor"]["lost"]) == (1, 3)
    assert count(result["against_clean"]["restored"]["lost"]) == (1, 3)
    assert count(result["against_clean"]["poor"]["invented"]) == (1, 3)
    assert count(result["against_clean"]["restored"]["invented"]) == (1, 3)
    # Restoring brings the second and the sixth to the clean prediction, and takes the third and the seventh from it.
    assert (result["towards_clean"]["b"], result["towards_clean"]["c"]) == (2, 2)
    assert result["agreement"]["poor_clean"]["agreeing"]["count"] == 6
    assert result["agreement"]["poor_restored"]["agreeing"]["count"] == 4
    change = result["probability_change"]
    assert change["covid"]["restored_minus_poor"]["mean"] == pytest.approx((restored - poor)[:4].mean())
    assert change["control"]["restored_minus_clean"]["mean"] == pytest.approx((restored - clean)[4:].mean())
    assert change["all"]["poor_minus_clean"]["n"] == 8
    assert result["f1"]["clean"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    json.dumps(result, allow_nan=False)


def test_without_clean_images_the_rest_is_there():
    result = prediction_changes([0, 1, 1], [0.2, 0.3, 0.9], [0.1, 0.8, 0.9])
    assert result["towards_clean"] is None
    assert result["against_clean"] is None
    assert list(result["agreement"]) == ["poor_restored"]
    assert list(result["probability_change"]["all"]) == ["restored_minus_poor"]
    assert result["changes"]["control"]["covid_to_control"]["share"] is None  # none was called COVID-19


def test_turned_cases_are_the_largest_changes_and_half_of_them_bad_ones():
    # Turned are the first, the third (most) and the fifth.
    probabilities = {"poor": np.array([0.4, 0.1, 0.9, 0.6, 0.2]), "restored": np.array([0.6, 0.2, 0.1, 0.9, 0.7])}
    called = probabilities["restored"] > 0.5
    for target in (called, ~called):  # all turned to it, all away from it
        assert preservation_figures.turned_cases(probabilities, target) == [2, 4, 0]
        assert preservation_figures.turned_cases(probabilities, target, 2) == [2, 4]
    mixed = np.array([False, False, False, True, False])  # only the third was turned to it
    assert preservation_figures.turned_cases(probabilities, mixed) == [4, 0, 2]
    assert preservation_figures.turned_cases(probabilities, mixed, 2) == [4, 2]


# --- Phantoms ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, PhantomSet(size=SIZE, train=2, test=8, seed=4, masks=True))
    return folder


@pytest.fixture(scope="module")
def found(phantoms_dir):
    return anatomies(phantoms_dir, read_domain(phantoms_dir / "testA_reference"), SIZE)


def test_masks_drawn_again_are_those_that_were_written(phantoms_dir, found):
    domain = read_domain(phantoms_dir / "testA_reference")
    for file, label, anatomy in zip(domain.files, domain.labels, found, strict=True):
        for part, mask in (("lungs", anatomy.lungs), ("opacities", anatomy.opacities)):
            written = images.read_image(phantoms_dir / "masks" / part / file.name, 1)[..., 0] > 0
            if part == "lungs" or label == 1:
                np.testing.assert_array_equal(mask, written)
            else:  # a control has none; what is measured is where its twin's are
                assert not written.any()
                assert mask.any()
        assert not (anatomy.ring & anatomy.opacities).any()
        assert not (anatomy.ring & ~anatomy.lungs).any()
        assert anatomy.opacity[anatomy.opacities].mean() > 0.05
        assert np.abs(anatomy.opacity[~anatomy.lungs]).mean() < 0.002


def test_masks_follow_the_size(phantoms_dir, found):
    domain = read_domain(phantoms_dir / "testA_reference")
    smaller = anatomies(phantoms_dir, domain, SIZE // 2)
    for one, other in zip(smaller, found, strict=True):
        assert one.lungs.shape == (SIZE // 2, SIZE // 2)
        assert one.lungs.mean() == pytest.approx(other.lungs.mean(), abs=0.04)
        assert one.opacities.mean() == pytest.approx(other.opacities.mean(), abs=0.04)


def test_what_is_no_phantom_or_another_one_is_refused(phantoms_dir, datasets_dir, tmp_path):
    with pytest.raises(UserError, match="no phantom by the manifest"):
        anatomies(datasets_dir, read_domain(datasets_dir / "testA_reference"), SIZE)
    reference = phantoms_dir / "testA_reference"
    other = make_phantom(np.random.default_rng(0), SIZE, "control").image
    for file in reference.iterdir():
        images.write_image(tmp_path / "testA_reference" / file.name, 2 * other - 1)
    (tmp_path / "manifest.csv").write_text((phantoms_dir / "manifest.csv").read_text())
    with pytest.raises(UserError, match="another version made this phantom"):
        anatomies(tmp_path, read_domain(tmp_path / "testA_reference"), SIZE)


def square_anatomy():
    """Lungs 40 x 40 in 48 x 48, an opacity of 10 x 10, a ring of 4 pixels around it."""
    lungs, opacities, ring = (np.zeros((48, 48), bool) for _ in range(3))
    lungs[4:44, 4:44] = opacities[20:30, 20:30] = ring[16:34, 16:34] = True
    return Anatomy(lungs, opacities, ring & ~opacities, 0.3 * opacities.astype(np.float32))


def test_contrast_by_hand():
    anatomy = square_anatomy()
    image = np.full((48, 48), 0.4)
    image[anatomy.opacities] = 0.65
    ring = np.argwhere(anatomy.ring)
    assert len(ring) == 18 * 18 - 100
    image[tuple(ring[::2].T)] += 0.02  # half of the ring: mean 0.41, standard deviation 0.01
    image[0, 0] = 9  # outside counts for nothing
    difference, to_noise = contrast(image, anatomy)
    assert difference == pytest.approx(0.24)
    assert to_noise == pytest.approx(24)


def test_brightest_patch_finds_a_patch_and_no_noise():
    lungs = square_anatomy().lungs
    noise = np.random.default_rng(0).normal(0, 0.05, (48, 48))
    quiet = brightest_patch(noise, lungs)
    assert 0 < quiet < 0.1
    patch = noise.copy()
    patch[8:18, 8:18] += 0.3
    assert 0.25 < brightest_patch(patch, lungs) < 0.4
    assert brightest_patch(patch + 0.2, lungs) == pytest.approx(brightest_patch(patch, lungs), abs=1e-5)
    outside = noise.copy()
    outside[:, 45:] += 3
    assert brightest_patch(outside, lungs) == pytest.approx(quiet, abs=1e-5)


def fade(found, share, add=0.0):
    """Clean images -> with `share` of each opacity, and `add` of one in each control, as by a known "restorer"."""

    def change(clean, labels):
        result = clean.copy()
        for image, label, anatomy in zip(result, labels, found, strict=True):
            image[..., 0] += 2 * ((share - 1) if label else add) * anatomy.opacity
        return result

    return change


def known_batches(phantoms_dir, found, share, add):
    """One batch as `stages` yields it, with a poor image that is darker everywhere and a restored one of known fate."""
    domain = read_domain(phantoms_dir / "testA")
    reference = reference_images(domain, phantoms_dir / "testA_reference")
    ((by_stage, _),) = stages(domain, reference, {}, SIZE, batch_size=len(domain))
    clean = by_stage["clean"]
    restored = fade(found, share, add)(clean, domain.labels)
    return domain.labels, [({"poor": clean - 0.1, "restored by x": restored, "clean": clean}, {})]


def test_an_opacity_half_erased_is_half_kept(phantoms_dir, found):
    labels, batches = known_batches(phantoms_dir, found, share=0.5, add=0.0)
    scores = opacity_contrast.phantom_scores(batches, found)
    result = opacity_contrast.summarise_phantoms(scores, labels, found)["stages"]
    covid = labels == 1
    lost = [contrast(anatomy.opacity, anatomy)[0] / 2 for anatomy in np.array(found, object)[covid]]
    before, after = scores["clean"]["contrast"][covid], scores["restored by x"]["contrast"][covid]
    np.testing.assert_allclose(before - after, lost, atol=1e-5)
    kept = result["restored by x"]["opacities"]
    assert kept["kept"]["value"] == pytest.approx(after.mean() / before.mean(), abs=1e-6)
    assert kept["kept"]["low"] < kept["kept"]["value"] < kept["kept"]["high"] < 1
    beyond = (after.mean() - scores["restored by x"]["contrast"][~covid].mean()) / (
        before.mean() - scores["clean"]["contrast"][~covid].mean()
    )
    assert kept["kept_beyond_anatomy"]["value"] == pytest.approx(beyond, abs=1e-6)
    assert result["poor"]["opacities"]["kept"]["value"] == pytest.approx(1, abs=1e-5)  # darker, as contrasted
    assert result["clean"]["opacities"]["kept"]["value"] == 1
    for stage in ("poor", "restored by x"):
        assert result[stage]["controls"]["false_opacity_in_place"]["count"] == 0
        assert result[stage]["controls"]["false_opacity_anywhere"]["count"] == 0


def test_an_opacity_added_to_controls_is_found(phantoms_dir, found):
    labels, batches = known_batches(phantoms_dir, found, share=1.0, add=1.0)
    scores = opacity_contrast.phantom_scores(batches, found)
    result = opacity_contrast.summarise_phantoms(scores, labels, found)
    controls = result["stages"]["restored by x"]["controls"]
    assert controls["false_opacity_in_place"]["n"] == 4
    assert controls["false_opacity_in_place"]["count"] == 4
    assert controls["false_opacity_anywhere"]["count"] >= 3
    assert controls["contrast_change"]["low"] > 0
    assert result["stages"]["restored by x"]["opacities"]["kept"]["value"] == pytest.approx(1, abs=1e-6)
    json.dumps(result, allow_nan=False)


def test_change_inside_and_outside_the_lungs(phantoms_dir, found):
    labels, batches = known_batches(phantoms_dir, found, share=0.0, add=0.0)
    scores = opacity_contrast.phantom_scores(batches, found)
    change = opacity_contrast.summarise_phantoms(scores, labels, found)["stages"]["restored by x"]["change"]
    expected = [
        np.abs(anatomy.opacity[anatomy.lungs]).mean() if label else 0
        for anatomy, label in zip(found, labels, strict=True)
    ]
    assert change["from_clean"]["inside"]["mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert change["from_clean"]["outside"]["mean"] < 1e-3
    difference = change["from_clean"]["inside"]["mean"] - change["from_clean"]["outside"]["mean"]
    assert change["from_clean"]["inside_minus_outside"]["mean"] == pytest.approx(difference)
    # The poor image is 0.1 darker on a scale of 2.
    assert change["from_poor"]["outside"]["mean"] == pytest.approx(0.05, abs=1e-3)


def test_opacities_too_small_to_measure_are_left_out(phantoms_dir, found):
    labels, batches = known_batches(phantoms_dir, found, share=0.5, add=0.0)
    blind = list(found)
    first = int(np.flatnonzero(labels == 1)[0])
    blind[first] = Anatomy(
        found[first].lungs, np.zeros_like(found[first].lungs), found[first].ring, found[first].opacity
    )
    scores = opacity_contrast.phantom_scores(batches, blind)
    result = opacity_contrast.summarise_phantoms(scores, labels, blind)
    assert np.isnan(scores["clean"]["contrast"][first])
    assert result["n_without_measurable_opacity"] == 1
    assert result["stages"]["clean"]["opacities"]["contrast"]["n"] == 3
    json.dumps(result, allow_nan=False)


# --- Figures and program ----------------------------------------------------------------------------------------------


def test_figures(phantoms_dir, found, tmp_path):
    labels, batches = known_batches(phantoms_dir, found, share=0.5, add=0.2)
    preservation_figures.save_contrast(
        opacity_contrast.phantom_scores(batches, found), labels, tmp_path / "contrast.png"
    )
    rng = np.random.default_rng(0)
    called = {image: rng.random(len(labels)) < 0.5 for image in ("poor", "restored")}
    preservation_figures.save_predictions(labels, called, tmp_path / "predictions.png", "model")
    domain = read_domain(phantoms_dir / "testA")
    restorer = Restorer(
        lambda batch: (batch, np.full((len(batch), 2), 0.5, np.float32)), (SIZE, SIZE), channels=1, stride=2
    )
    same = np.full(len(labels), 0.2)
    arguments = domain, None, restorer, 1
    nothing = {"poor": same, "restored": same}
    assert preservation_figures.save_turned(*arguments, nothing, tmp_path / "changed.png") == 0
    assert not (tmp_path / "changed.png").exists()
    turned = {"poor": same, "restored": np.where(labels == 1, 0.9, 0.2)}
    assert preservation_figures.save_turned(*arguments, turned, tmp_path / "changed.png") == 4
    for name in ("contrast.png", "predictions.png", "changed.png"):
        assert images.read_image(tmp_path / name).std() > 0.1


def test_the_program(phantoms_dir, tmp_path):
    from r2c_gan.models import checkpoints
    from r2c_gan.models.model import R2CGAN

    model = R2CGAN(method="operational", q=1, channels=1, filters=2, image_size=SIZE, pool_size=0)
    model.compile()
    checkpoints.write_config(tmp_path / "gan", model.config)
    checkpoints.save_checkpoint(tmp_path / "gan", model, epoch=1, step=1)
    command = programs.python("-m", "experiments.preservation", f"--models={tmp_path / 'gan'}")
    command += [f"--phantoms_dir={phantoms_dir}", f"--output_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["radiographs"] is None
    assert result["phantoms"]["n"] == 8
    assert set(result["phantoms"]["stages"]) == {"poor", "restored by gan", "clean"}
    assert {"contrast.png", "flags.txt", "result.json"} == {path.name for path in (tmp_path / "out").iterdir()}
    assert "restored by gan: opacity contrast kept" in done.stdout

"""The restorer: passes, any size, memory; with networks whose answer is known."""

import json
import shutil

import numpy as np
import pytest

from r2c_gan.data import images
from r2c_gan.data.noise_level import noise_variance
from r2c_gan.data.predictions import prediction_row
from r2c_gan.errors import UserError
from r2c_gan.layers.operational import portable
from r2c_gan.models import checkpoints
from r2c_gan.restoration import memory
from r2c_gan.restoration.restorer import Restorer, TooLargeError


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


class Halving:
    """A network that halves the image, and says how bright it was; it remembers the shapes it was given."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        covid = (batch.mean((1, 2, 3)) + 1) / 2
        return batch / 2, np.stack([1 - covid, covid], axis=-1).astype("float32")


def restorer(network=None, size=(8, 8), channels=1, stride=4):
    return Restorer(network or Halving(), size, channels, stride)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_each_pass_restores_the_one_before(iterations):
    batch = random(3, 8, 8, 1)
    result = restorer()(batch, iterations)
    assert len(result.passes) == len(result.probabilities) == iterations
    for number in range(iterations):
        np.testing.assert_allclose(result.passes[number], batch / 2 ** (number + 1), rtol=1e-6)
        fed = batch / 2**number
        np.testing.assert_allclose(result.probabilities[number][:, 1], (fed.mean((1, 2, 3)) + 1) / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 4), (9, 8), (3, 1)])
def test_any_size_comes_back_and_the_network_sees_multiples_of_the_stride(size):
    network, batch = Halving(), random(2, *size, 1)
    result = restorer(network)(batch, 2)
    for restored in result.passes:
        assert restored.shape == batch.shape
    np.testing.assert_allclose(result.passes[0], batch / 2)
    padded = tuple(-(-side // 4) * 4 for side in size)
    assert network.shapes == [(2, *padded, 1)] * 2


def test_padding_mirrors():
    seen = []

    def network(batch):
        seen.append(batch)
        return batch, np.ones((1, 2))

    restorer(network)(random(1, 6, 5, 1))
    mirrored = np.pad(random(1, 6, 5, 1), [(0, 0), (0, 2), (0, 3), (0, 0)], mode="symmetric")
    np.testing.assert_array_equal(seen[0], mirrored)


def test_bad_batches_and_iterations():
    for shape in ((8, 8, 1), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"a batch \[N, H, W, 1\] is needed"):
            restorer()(np.zeros(shape))
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        restorer()(np.zeros((1, 8, 8, 1)), 0)


ENTRIES = {
    "call": lambda restorer, image: restorer(np.stack([image] * 2)),
    "probabilities": lambda restorer, image: restorer.probabilities(image[None]),
    "restore": lambda restorer, image: restorer.restore(image),
    "native": lambda restorer, image: restorer.restore(image, size="native"),
    "restore_batch": lambda restorer, image: restorer.restore_batch([np.zeros((8, 8, 1), "float32"), image]),
    "restore_image": lambda restorer, image: restorer.restore_image(image),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_values_that_no_image_has_are_refused(entry):
    restore, good = ENTRIES[entry], random(8, 8, 1)
    levels = np.arange(64).reshape(8, 8, 1) * 4
    for kind in ("uint8", "uint16", "int32", "bool", "complex64"):
        with pytest.raises(ValueError, match=f"images of type {kind}; floats .* images.read_image .* images.from_uint"):
            restore(restorer(), levels.astype(kind))
    for value in (np.nan, np.inf, -np.inf, 1.1, -1.01, 255):
        bad = good.copy()
        bad[3, 4] = value
        with pytest.raises(ValueError, match=r"finite ones in \[-1, 1\] are needed"):
            restore(restorer(), bad)
    with pytest.warns(UserWarning, match=r"all values lie in \[.*2 \* image - 1 of one in \[0, 1\]"):
        restore(restorer(), (good + 1) / 2)
    restore(restorer(), np.clip(good * 1.5, -1.0005, 1.0005).astype("float64"))
    restore(restorer(), np.ones((8, 8, 1), "float16"))  # white


@pytest.mark.parametrize("output", [0, 1])
def test_a_network_that_gives_nan_is_named(output):
    def network(batch):
        outputs = [batch.copy(), np.ones((len(batch), 2))]
        outputs[output][0] = np.nan
        return outputs

    for restore in ENTRIES.values():
        if restore is not ENTRIES["probabilities"]:
            with pytest.raises(UserError, match="the model gives values that are not finite"):
                restore(restorer(network), random(8, 8, 1))


def test_one_image_is_restored_at_the_models_size_and_comes_back_at_its_own():
    network = Halving()
    image = np.full((30, 21, 1), 0.8, "float32")
    restored, probabilities = restorer(network, size=(16, 8)).restore_image(image, iterations=2)
    assert network.shapes == [(1, 16, 8, 1)] * 3  # two passes, and the head on what came out
    assert restored.shape == image.shape
    np.testing.assert_allclose(restored, 0.2, atol=1e-6)
    np.testing.assert_allclose(probabilities, [0.1, 0.9], atol=1e-6)  # of the image itself, not of the first pass


def test_what_the_films_say_of_an_input_comes_with_its_result():
    class Films:
        def score(self, image):
            return float(image[0, 0, 0]) + 1

    usual, odd, blank = random(9, 9, 1), random(9, 9, 1), np.full((9, 9, 1), 0.5, "float32")
    usual[0, 0], odd[0, 0] = -0.5, 0.75
    restore = Restorer(Halving(), (8, 8), 1, 4, films=Films()).restore_batch
    found = [(result.unlikeness, result.warning) for result in restore([usual, odd, blank])]
    assert found[0] == (0.5, None) and found[1][0] == 1.75 and found[2][0] == 1.5
    assert "(unlikeness 1.75" in found[1][1] and found[2][1].startswith("blank")
    assert [(result.unlikeness, result.warning) for result in restorer().restore_batch([odd])] == [(None, None)]


def test_restored_values_stay_in_range():
    loud = restorer(lambda batch: (batch * 9, np.ones((1, 2))))
    restored, _ = loud.restore_image(random(20, 20, 1))
    assert np.abs(restored).max() == 1


def test_prediction_row():
    assert prediction_row("a/b.png", [0.25, 0.75]) == {
        "file": "a/b.png",
        "p_control": "0.250000",
        "p_covid": "0.750000",
        "label": "covid",
    }
    assert prediction_row("b.png", [0.6, 0.4])["label"] == "control"


# --- any size --------------------------------------------------------------------------------------------------------


def sharp(height, width, channels=1):
    """Smooth shading with thin bright lines, which a small size cannot hold."""
    y, x = np.mgrid[:height, :width]
    image = 0.5 * np.sin(x / width * 3) * np.cos(y / height * 2) - 0.2
    image[:, ::17] += 0.4
    return np.repeat(image[..., None], channels, axis=-1).astype("float32")


@pytest.mark.parametrize("size", ["model", "native"])
@pytest.mark.parametrize("shape", [(8, 8), (33, 47), (5, 61), (1, 1), (3, 200), (100, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_keeps_its_shape(size, shape, channels):
    image = random(*shape, channels)
    result = restorer(channels=channels).restore(image, 2, size)
    assert result.image.shape == image.shape and result.image.dtype == np.float32
    assert np.abs(result.image).max() <= 1
    for probabilities in (result.before, result.after):
        assert probabilities.shape == (2,) and probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_native_size_is_the_network_on_the_image_itself():
    image = random(33, 47, 1)
    result = restorer().restore(image, 2, "native")
    np.testing.assert_allclose(result.image, image / 4, atol=1e-7)
    np.testing.assert_allclose(result.before, restorer().probabilities(image[None])[0])
    np.testing.assert_allclose(result.after, restorer().probabilities(result.image[None])[0])


@pytest.mark.parametrize("detail", ["all", "filtered"])
def test_a_network_that_changes_nothing_changes_nothing(detail):
    """Without noise there is nothing to filter: all that the model's size cannot hold comes back."""
    same = restorer(lambda batch: (batch, np.full((len(batch), 2), 0.5)))
    image = sharp(90, 120)
    result = same.restore(image, detail=detail)
    np.testing.assert_allclose(result.image, image, atol=1e-6 if detail == "all" else 0.01)
    assert np.abs(same.restore(image, detail="none").image - image).mean() > 0.02


def test_the_change_is_enlarged_and_added():
    darker = restorer(lambda batch: (batch - 0.25, np.ones((len(batch), 2))))
    image = sharp(90, 120)
    np.testing.assert_allclose(darker.restore(image, detail="all").image, image - 0.25, atol=1e-5)


def test_without_detail_the_result_is_enlarged():
    image = sharp(50, 70)
    expected = images.resize(images.resize(image, 8, 8) / 2, 50, 70)
    np.testing.assert_allclose(restorer().restore(image, detail="none").image, expected, atol=1e-6)


def test_noise_does_not_come_back_with_the_detail_but_edges_do():
    clean = np.full((128, 128, 1), -0.3, "float32")
    clean[40:80, 50:90] = 0.5
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, clean.shape).astype("float32")
    same = restorer(lambda batch: (batch, np.full((len(batch), 2), 0.5)), size=(32, 32))
    errors = {}
    for detail in ("all", "filtered", "none"):
        errors[detail] = np.sqrt(np.mean((same.restore(noisy, detail=detail).image - clean) ** 2))
    assert errors["all"] == pytest.approx(0.05, rel=0.05)
    assert errors["filtered"] < 0.5 * min(errors["all"], errors["none"])


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_noise_is_estimated(sigma):
    noise = np.random.default_rng(1).normal(0, sigma, (200, 210, 2)) * [1, 3]
    estimated = noise_variance((sharp(200, 210, 2) * [1, 0] + noise).astype("float32"))
    np.testing.assert_allclose(np.sqrt(estimated), [sigma, 3 * sigma], rtol=0.25)


def test_the_head_looks_at_the_input_and_at_the_restored_image():
    result = restorer().restore(np.full((20, 20, 1), 0.8, "float32"), iterations=3)
    assert result.before[1] == pytest.approx(0.9) and result.after[1] == pytest.approx(0.55)
    assert not result.label_changed
    negating = restorer(lambda batch: (-batch, Halving()(batch)[1]))
    result = negating.restore(np.full((20, 20, 1), 0.8, "float32"))
    assert (result.before[1], result.after[1]) == (pytest.approx(0.9), pytest.approx(0.1))
    assert result.label_changed is True


def test_a_batch_is_its_images():
    batch = [random(20, 30, 1, seed=1), random(9, 9, 1, seed=2), random(40, 8, 1, seed=3)]
    network = Halving()
    together = restorer(network).restore_batch(batch)
    assert network.shapes[0] == (3, 8, 8, 1)
    for one, image in zip(together, batch, strict=True):
        alone = restorer().restore(image)
        np.testing.assert_allclose(one.image, alone.image, atol=1e-6)
        np.testing.assert_allclose(one.before, alone.before, atol=1e-6)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="size must be one of model, native"):
        restorer().restore(random(8, 8, 1), size="huge")
    with pytest.raises(ValueError, match="detail must be one of filtered, all, none"):
        restorer().restore(random(8, 8, 1), detail="some")


# --- memory ----------------------------------------------------------------------------------------------------------


def known(**config):
    return Restorer(Halving(), (8, 8), 1, 2, config=config)


def test_memory_is_predicted_from_the_network():
    """At least what was measured with 1024x1024 pixels in one channel, and no more than 30% above it."""
    measured = [  # bytes a pixel
        (838, {"method": "operational", "q": 3, "filters": 64}),
        (560, {"method": "operational", "q": 1, "filters": 64}),
        (1267, {"method": "operational", "q": 5, "filters": 64}),
        (688, {"method": "convolutional-light", "q": 1, "filters": 64}),
        (1243, {"method": "convolutional", "q": 1, "filters": 64}),
        (952, {"method": "operational", "q": 1, "filters": 64, "upsampling": "resize"}),
        (1509, {"method": "operational", "q": 3, "filters": 64, "upsampling": "resize"}),
        (2040, {"method": "operational", "q": 5, "filters": 64, "upsampling": "resize"}),
        (954, {"method": "convolutional-light", "q": 1, "filters": 64, "upsampling": "resize"}),
        (1482, {"method": "convolutional", "q": 1, "filters": 64, "upsampling": "resize"}),
    ]
    for bytes_a_pixel, config in measured:
        predicted = known(**config).predicted_memory(1024, 1024)
        assert 1 <= predicted / (bytes_a_pixel * 1024**2) <= 1.3, config
    assert known(**config).predicted_memory(512, 2048, 3) == 3 * predicted
    with portable():  # as on JAX, where 2155 were measured with q=3
        assert 1 <= known(**config).predicted_memory(1024, 1024) / (2155 * 1024**2) <= 1.3
    assert restorer().predicted_memory(1024, 1024) is None


def test_what_does_not_fit_is_refused_with_a_hint(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10 * 2**30)
    operational = known(method="operational", q=3, filters=64)
    assert operational.restore(random(20, 21, 1), size="native").image.shape == (20, 21, 1)
    wanted = r"6000 x 5000 pixels need about 29\.\d GiB .* 10\.0 GiB are available; use --size=model"
    with pytest.raises(TooLargeError, match=wanted):
        operational.restore(np.zeros((5000, 6000, 1), "float32"), size="native")
    monkeypatch.setattr(memory, "available", lambda: None)
    operational.check_memory(5000, 6000)


def test_a_device_that_runs_out_of_memory_is_told_in_one_line():
    class ResourceExhaustedError(Exception):
        pass

    for kind in (MemoryError, ResourceExhaustedError):

        def network(batch, kind=kind):
            raise kind("OOM when allocating tensor")

        with pytest.raises(TooLargeError, match=r"30 x 20 pixels do not fit .* --size=model"):
            restorer(network).restore(np.zeros((20, 30, 1)), size="native")
    with pytest.raises(ZeroDivisionError):
        restorer(lambda batch: 1 / 0).restore(np.zeros((20, 30, 1)), size="native")


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_run_is_loaded(run_dir):
    model, checkpoint = checkpoints.load_model(run_dir, "latest")
    loaded = Restorer.load(run_dir, "latest")
    assert (loaded.size, loaded.channels, loaded.stride) == ((32, 32), 3, 2)
    assert loaded.source == {"run": "whole", "epoch": 3, "sha256": checkpoint.sha256}
    assert loaded.checksum == checkpoint.sha256
    np.testing.assert_allclose(
        loaded.probabilities(random(2, 31, 32, 3)), loaded(random(2, 31, 32, 3)).probabilities[0]
    )
    batch = random(2, 32, 32, 3)
    restored, probabilities = model.restorer(batch)
    result = loaded(batch, 2)
    np.testing.assert_allclose(result.passes[0], restored, atol=1e-6)
    np.testing.assert_allclose(result.probabilities[0], probabilities, atol=1e-6)
    np.testing.assert_allclose(result.passes[1], model.restorer(restored)[0], atol=1e-5)


def test_an_epoch_can_be_chosen(run_dir):
    batch = random(1, 32, 32, 3)
    second, third = (Restorer.load(run_dir, epoch) for epoch in ("2", "3"))
    assert (second.source["epoch"], third.source["epoch"]) == (2, 3)
    assert not np.array_equal(second(batch).passes[0], third(batch).passes[0])


def test_what_cannot_be_loaded_is_named(tmp_path, run_dir):
    with pytest.raises(UserError, match="no such folder; give a run folder, a SavedModel or the word pretrained"):
        Restorer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        Restorer.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint '99'"):
        Restorer.load(run_dir, "99")
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"format": 1, "training": {}, "model": {"method": "cubic"}}))
    with pytest.raises(UserError, match=r"config\.json: describes no model.*cubic"):
        Restorer.load(run)


def test_saved_models_that_are_not_ours_are_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"r2c_gan\.json: no such file"):
        Restorer.load(tmp_path)
    (tmp_path / "r2c_gan.json").write_text(json.dumps({"image_size": [8, 8], "channels": 1, "stride": 2}))
    with pytest.raises(UserError, match="not a SavedModel of r2c-gan-export"):
        Restorer.load(tmp_path)

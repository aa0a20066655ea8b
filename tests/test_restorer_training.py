"""Training a restorer alone: the pairs, the losses by hand, a resumed run, and the program from folders to figures."""

import json
import subprocess

import numpy as np
import programs
import pytest

from r2c_gan.data import datasets as data
from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training import pairs, restorer_training
from r2c_gan.training.restorer_options import RestorerTraining

SIZE = 32


@pytest.fixture
def folder(tmp_path):
    """A datasets folder: good films are gradients, poor ones the same with noise."""
    rng = np.random.default_rng(0)
    for name, count in (("trainA", 8), ("trainB", 8), ("valA", 4), ("testA", 4)):
        for number in range(count):
            label = ("control", "covid")[number % 2]
            film = np.linspace(-0.8, 0.8, SIZE)[:, None] * np.ones((SIZE, SIZE)) * (0.5 + 0.5 * rng.random())
            poor = np.clip(film + 0.3 * rng.standard_normal(film.shape), -1, 1)
            if name == "trainB":
                images.write_image(tmp_path / name / label / f"{number}.png", film[..., None])
                continue
            images.write_image(tmp_path / name / label / f"{number}.png", poor[..., None])
            images.write_image(tmp_path / f"{name}_reference" / label / f"{number}.png", film[..., None])
    return tmp_path


def brighter(film, rng):
    return np.clip(film + 0.2, 0, 1)


def sources_of(folder):
    poor, good = data.read_domain(folder / "trainA"), data.read_domain(folder / "trainB")
    references = data.reference_images(poor, folder / "trainA_reference")
    return [pairs.Source(good, degrade=brighter), pairs.Source(poor, references), pairs.Source(poor, weight=0.5)]


def test_samples_of_each_kind_and_the_same_for_the_same_place(folder):
    kept, alone, degraded = (
        pairs.PairSequence([source], SIZE, batch_size=4, clean_share=0.0, seed=3)
        for source in (sources_of(folder)[index] for index in (1, 2, 0))
    )
    poor, (good, labels, paired) = kept[0]
    assert paired.min() == 1 and 0.1 < np.abs(poor - good).mean() < 0.4 and set(labels.sum(1)) == {1.0}
    poor, (good, _, paired) = alone[0]
    assert paired.max() == 0 and np.array_equal(poor, good) and len(alone) == 1
    poor, (good, _, paired) = degraded[0]
    np.testing.assert_allclose(poor, np.minimum(good + 0.4, 1), atol=1e-5)
    assert paired.min() == 1
    again = pairs.PairSequence([sources_of(folder)[0]], SIZE, batch_size=4, clean_share=0.0, seed=3)
    np.testing.assert_array_equal(again[0][0], poor)
    again.on_epoch_end()
    assert not np.array_equal(again[0][0], poor)


def test_every_film_comes_once_an_epoch(folder):
    sequence = pairs.PairSequence(sources_of(folder), SIZE, batch_size=4)
    assert len(sequence) == (8 + 8 + 4) // 4
    assert sorted(sequence._order(2))[:16] == [(source, film) for source in (0, 1) for film in range(8)]


def test_some_films_are_left_as_they_are(folder):
    sequence = pairs.PairSequence([sources_of(folder)[0]], SIZE, batch_size=8, clean_share=0.5)
    same = sum(np.array_equal(*sequence.sample(epoch, index)[:2]) for epoch in range(10) for index in range(8))
    assert 25 <= same <= 55


def test_losses_by_hand():
    good, restored = np.zeros((2, 2, 2, 1), "float32"), np.zeros((2, 2, 2, 1), "float32")
    restored[0, 0, 0, 0], restored[1] = 0.4, 1.0
    paired = np.float32([[1], [0]])  # the second film has no good one
    l1, gradient = restorer_training.image_losses(good, restored, paired)
    assert float(l1) == pytest.approx(0.1) and float(gradient) == pytest.approx(0.2 + 0.2)
    l1, _ = restorer_training.image_losses(good, restored, np.zeros((2, 1), "float32"))
    assert float(l1) == 0


def test_schedule_rises_and_falls():
    schedule = restorer_training.WarmCosine(1.0, 10, 110)
    assert [float(schedule(step)) for step in (0, 4, 60, 110, 200)] == pytest.approx([0.1, 0.5, 0.5, 0, 0], abs=1e-6)


def test_the_average_follows_early_and_slowly_later():
    class Network:
        def get_weights(self):
            return [np.array([self.value])]

    network = Network()
    average = restorer_training.Average(network, 0.998)
    for step in range(4000):
        network.value = 0.0 if step < 100 else 1.0
        average.on_train_batch_end(step)
        if step == 99:
            assert average.weights[0][0] == 0
        if step == 199:
            assert average.weights[0][0] > 0.85  # without the warm-up, 0.18
    assert average.weights[0][0] > 0.99


def small(folder, **changes):
    values = {"method": "convolutional-light", "filters": 8, "size": SIZE, "epochs": 2, "batch_size": 4}
    return RestorerTraining(output_dir=str(folder), **values | {"warmup": 2} | changes)


def run(folder, output, report=lambda line: None, **changes):
    sequence = pairs.PairSequence(sources_of(folder), SIZE, batch_size=4)
    domain = data.read_domain(folder / "valA")
    validation = domain, data.reference_images(domain, folder / "valA_reference")
    return restorer_training.train(small(output, **changes), sequence, validation, report)


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(folder):
    whole = run(folder, folder / "whole")

    def killed(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, folder / "halves", killed)
    resumed = run(folder, folder / "halves")
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    history = (folder / "halves" / "history.csv").read_text().splitlines()
    assert len(history) == 3 and "val_psnr" in history[0]
    # The run restores like any other, with the averages, and another training starts from them.
    x = np.zeros((1, SIZE, SIZE, 1), "float32")
    np.testing.assert_allclose(Restorer.load(folder / "whole").network(x)[0], whole(x)[0], atol=1e-6)
    started = restorer_training.initial_weights(folder / "whole", whole)
    np.testing.assert_array_equal(started[0], whole.get_weights()[0])
    np.savez(folder / "weights.npz", **{f"{n:03d}": w for n, w in enumerate(whole.get_weights())})
    np.testing.assert_array_equal(restorer_training.initial_weights(folder / "weights.npz", whole)[0], started[0])
    (folder / "broken.npz").write_text("no weights")
    with pytest.raises(UserError, match="not a readable file of weights"):
        restorer_training.initial_weights(folder / "broken.npz", whole)
    with pytest.raises(UserError, match="another --lr"):
        run(folder, folder / "whole", lr=0.5)


def test_the_program(folder):
    start = programs.python("-m", "experiments.train_restorer", f"--datasets_dir={folder}")
    command = [*start, "--paired", f"--output_dir={folder / 'run'}", "--filters=8", "--epochs=1", "--batch_size=4"]
    command += ["--method=convolutional-light"]
    subprocess.run(command, check=True, capture_output=True)
    measured = json.loads((folder / "run" / "test.json").read_text())["test"][folder.name]
    assert measured["n"] == 4 and measured["restored"]["psnr"] > 0 and measured["good_film_restored_psnr"] > 0
    bare = subprocess.run([*start, f"--output_dir={folder / 'x'}"], capture_output=True, text=True)
    assert bare.returncode == 1 and "there are no pairs" in bare.stderr

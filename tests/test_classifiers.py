"""Classifiers: networks against the applications' own preprocessing, exact resume, refusals, restored copies."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from absl import flags
from test_cli import no_programs_flags, start

from experiments.classifiers import classifier as classifiers
from experiments.classifiers import data as classifier_data
from experiments.classifiers import networks as classifier_networks
from experiments.classifiers.classifier import Classifier
from experiments.classifiers.data import domains_of
from experiments.classifiers.networks import build_classifier
from experiments.classifiers.training import ClassifierConfig, train
from r2c_gan.cli import option_flags
from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain, reference_images
from r2c_gan.data.streams import UnpairedStream, read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics
from r2c_gan.models import checkpoints
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training.callbacks import read_history

SIZE = 32
EPOCHS = 6


def config(datasets, run, **changes):
    settings = {"network": "small_cnn", "size": SIZE, "epochs": EPOCHS, "batch_size": 4, "lr": 3e-3}
    return ClassifierConfig(str(datasets), str(run), **{**settings, **changes})


@pytest.fixture(scope="module")
def slopes_dir(tmp_path_factory):
    """A datasets folder of images that are bright above or below, which mirroring leaves as it is."""
    folder = tmp_path_factory.mktemp("slopes")
    slope = np.linspace(-0.8, 0.8, 40)[:, None]
    noise = np.random.default_rng(0)
    for name, count in (("trainA", 12), ("valA", 6)):
        for index in range(count):
            file = f"{'covid' if index % 2 else 'normal'}-{index}.png"
            image = (slope if index % 2 else -slope) + noise.normal(0, 0.1, (40, 40))
            images.write_image(folder / name / file, image)
    return folder


@pytest.fixture(scope="module")
def runs(slopes_dir, tmp_path_factory):
    """A training, and its folder as a kill before the third checkpoint would have left it."""
    folder, killed = (tmp_path_factory.mktemp("classifiers") / name for name in ("whole", "killed"))
    save = checkpoints.save_checkpoint

    def copy_and_save(run, model, epoch, *rest):
        if epoch == 3:
            shutil.copytree(run, killed)
        return save(run, model, epoch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", copy_and_save)
        train(config(slopes_dir, folder))
    return folder, killed


@pytest.fixture(scope="module")
def run(runs):
    """A training that was not interrupted. Read it, do not write to it."""
    return runs[0]


# --- Networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["densenet121", "resnet50", "inception_v3"])
def test_scaling_is_that_of_the_application(network):
    import keras

    module = {"densenet121": "densenet", "resnet50": "resnet", "inception_v3": "inception_v3"}[network]
    gray = np.linspace(-1, 1, 5)[:, None]
    scale, offset = classifier_networks.input_scaling(network)
    pixels = np.repeat((gray + 1) * 127.5, 3, axis=1).reshape(1, 5, 1, 3)
    expected = getattr(keras.applications, module).preprocess_input(pixels.copy())[0, :, 0]
    np.testing.assert_allclose(scale * gray + offset, expected, atol=1e-5)


def test_an_image_is_enlarged_tripled_and_scaled_in_the_graph(monkeypatch):
    import keras

    seen = {}

    def application(weights, include_top, input_shape, pooling):
        seen.update(weights=weights, include_top=include_top, input_shape=input_shape)
        image = keras.Input(input_shape)
        return keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))

    monkeypatch.setattr(keras.applications, "InceptionV3", application)
    model = build_classifier("inception_v3", SIZE)
    assert seen == {"weights": None, "include_top": False, "input_shape": (75, 75, 3)}
    kernel = np.array([[1.0, -1], [1, -1], [1, -1]])
    model.layers[-1].set_weights([kernel, np.zeros(2)])
    image = np.full((1, SIZE, SIZE, 1), 0.25, np.float32)
    # Inception sees [-1, 1] as it is: the logits are the sum of three channels of 0.25, and minus that.
    expected = np.exp(0.75) / (np.exp(0.75) + np.exp(-0.75))
    np.testing.assert_allclose(model.predict_on_batch(image)[0], [expected, 1 - expected], atol=1e-5)


def test_momentum_precision_and_output_of_a_network():
    import keras

    model = build_classifier("small_cnn", SIZE, bn_momentum=0.8, precision="mixed_bfloat16")
    normalisations = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(normalisations) == 4
    assert {layer.momentum for layer in normalisations} == {0.8}
    assert {layer.compute_dtype for layer in model.layers if isinstance(layer, keras.layers.Conv2D)} == {"bfloat16"}
    assert {str(weight.dtype) for weight in model.weights} == {"float32"}
    probabilities = model.predict_on_batch(np.zeros((3, SIZE, SIZE, 1), np.float32))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert keras.config.dtype_policy().name == "float32"  # as it was before


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    import keras

    def no_network(**_):
        raise Exception("URL fetch failure on https://example.org: None -- unreachable")

    monkeypatch.setattr(keras.applications, "ResNet50", no_network)
    with pytest.raises(UserError, match=r"--weights=imagenet: .*resnet50.*--weights=none"):
        build_classifier("resnet50", SIZE, weights="imagenet")


# --- Data -------------------------------------------------------------------------------------------------------------


def test_what_is_trained_and_validated_on(datasets_dir, tmp_path):
    def folders(**changes):
        training, validation = domains_of(config(datasets_dir, tmp_path, **changes))
        return {file.parent.name for file in training.files}, {file.parent.name for file in validation.files}

    assert folders() == ({"trainA"}, {"valA"})
    assert folders(train_on="trainB") == ({"trainB"}, {"valA_reference"})
    assert folders(train_on="both", validate_on="testA") == ({"trainA", "trainB"}, {"testA"})
    assert folders(train_on=str(datasets_dir / "trainB")) == ({"trainB"}, {"valA"})
    both, _ = domains_of(config(datasets_dir, tmp_path, train_on="both"))
    assert both.labels.tolist() == ["covid" in file.name for file in both.files]


def test_batches_are_the_samples_of_the_stream_from_any_epoch_on(datasets_dir):
    domain = read_domain(datasets_dir / "trainA")
    stream = UnpairedStream(domain, domain, 36, SIZE, 1, batch_size=2, seed=3)
    steps = stream.steps_per_epoch
    batches = list(stream.dataset(epochs=3, initial_step=steps, domains=(0,)).as_numpy_iterator())
    assert len(batches) == 2 * steps == 6
    for step, ((pixels, labels),) in enumerate(batches):
        for place in range(2):
            epoch, index = divmod(2 * step + place, 6)
            image, label = stream.sample(0, 1 + epoch, index)
            np.testing.assert_array_equal(pixels[place], image)
            np.testing.assert_array_equal(labels[place], label)


def test_clean_twins_have_names_and_labels_of_the_poor_images(datasets_dir, tmp_path):
    poor = read_domain(datasets_dir / "testA")
    twins = reference_images(poor, datasets_dir / "testA_reference")
    assert [file.name for file in twins.files] == [file.name for file in poor.files]
    assert twins.folder.name == "testA_reference"
    np.testing.assert_array_equal(twins.labels, poor.labels)
    images.write_image(tmp_path / "covid-1.png", np.zeros((8, 8)))
    with pytest.raises(UserError, match=r"covid-3.*no image of the same name"):
        reference_images(poor, tmp_path)


def test_a_restored_copy_holds_what_the_restorer_returns_and_is_made_once(datasets_dir, tmp_path):
    calls = []

    def darken(batch):
        calls.append(len(batch))
        return 0.5 * np.asarray(batch) - 0.25, np.full((len(batch), 2), 0.5, np.float32)

    restorer = Restorer(darken, (SIZE, SIZE), channels=1, stride=2)
    domain = read_domain(datasets_dir / "valA")
    copy = classifier_data.restored_copy(domain, restorer, tmp_path / "copy", batch_size=3)
    assert calls == [3, 1]
    np.testing.assert_array_equal(copy.labels, domain.labels)
    (poor,), (restored,) = (list(read_batches(part.files, SIZE, 1, 4)) for part in (domain, copy))
    np.testing.assert_allclose(restored, 0.5 * poor - 0.25, atol=2e-5)  # 16 bits
    classifier_data.restored_copy(domain, restorer, tmp_path / "copy")
    assert calls == [3, 1]


# --- Training ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_result_history_and_model_belong_together(run, slopes_dir):
    rows = read_history(run)
    result = json.loads((run / "result.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert [row["learning_rate"] for row in rows] == pytest.approx([3e-3] * 3 + [3e-3 * left / 9 for left in (7, 4, 1)])
    assert result["validation"]["val_auroc"] == 1.0
    assert result["images"] == {"train": {"control": 6, "covid": 6}, "val": {"control": 3, "covid": 3}}
    scores = [row["val_f1"] for row in rows]
    assert result["best_epoch"] == 1 + scores.index(max(scores))
    # The model is that of the best epoch: it scores on valA/ what the history says.
    classifier = Classifier.load(run)
    domain = read_domain(slopes_dir / "valA")
    (batch,) = read_batches(domain.files, SIZE, 1, 6)
    probabilities = classifier(batch)
    best = rows[result["best_epoch"] - 1]
    assert metrics.classification_metrics(domain.labels, probabilities)["f1"] == pytest.approx(max(scores))
    likelihood = probabilities[np.arange(6), domain.labels]
    assert -np.log(likelihood).mean() == pytest.approx(best["val_loss"], abs=1e-5)
    # Twice the size, three channels, padding: the same answer for the same picture.
    large = np.repeat(np.repeat(np.repeat(batch, 2, 1), 2, 2), 3, -1)
    np.testing.assert_allclose(classifier(large[:3]), probabilities[:3], atol=1e-5)
    assert {"data.json", "losses.png", "model.keras"} <= {path.name for path in run.iterdir()}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(runs, slopes_dir):
    whole, killed = runs
    assert [row["epoch"] for row in read_history(killed)] == [1, 2, 3]
    assert [checkpoint.epoch for checkpoint in checkpoints.list_checkpoints(killed)] == [1, 2]
    train(config(slopes_dir, killed))
    for one, other in zip(*(Classifier.load(folder).model.get_weights() for folder in (killed, whole)), strict=True):
        np.testing.assert_array_equal(one, other)
    columns = ("epoch", "step", "loss", "accuracy", "val_loss", "learning_rate")
    histories = [[[row[name] for name in columns] for row in read_history(folder)] for folder in (killed, whole)]
    assert histories[0] == histories[1]


def test_classes_are_weighed_if_asked_to(datasets_dir, tmp_path, monkeypatch):
    import keras

    class Stop(Exception):
        pass

    def fit(self, *_, class_weight, **__):
        given.append(class_weight)
        raise Stop

    given = []
    monkeypatch.setattr(keras.Model, "fit", fit)
    shutil.copytree(datasets_dir, tmp_path / "data")
    for file in (tmp_path / "data" / "trainA").glob("covid-[35]*"):
        file.unlink()
    for class_weights in ("none", "balanced"):
        with pytest.raises(Stop):
            train(config(tmp_path / "data", tmp_path / class_weights, class_weights=class_weights))
    assert given == [None, {0: pytest.approx(4 / 6), 1: pytest.approx(2.0)}]


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vgg"}, "--network=vgg"),
        ({"size": 8}, "--size=8"),
        ({"lr": -1.0}, "--lr=-1.0"),
        ({"bn_momentum": 1.0}, "--bn_momentum=1.0"),
        ({"weights": "imagenet"}, "--weights=imagenet: there are none of small_cnn"),
        ({"train_on": "trainC"}, "--train_on=trainC"),
        ({"batch_size": 100}, "--batch_size=100"),
        ({"validate_on": "nowhere"}, "--validate_on=nowhere"),
        ({"restorer": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_wrong_settings_are_named_and_leave_nothing_behind(datasets_dir, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config(datasets_dir, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"epochs": 5}, {"lr": 1e-3}, {"seed": 1}, {"train_on": "valA"}])
def test_a_run_does_not_go_on_with_other_settings(run, slopes_dir, changes):
    (name,) = changes
    with pytest.raises(UserError, match=rf"holds a run with --{name}="):
        train(config(slopes_dir, run, **changes))


def test_a_run_does_not_go_on_with_other_images(run, slopes_dir, tmp_path):
    shutil.copytree(slopes_dir, tmp_path / "data")
    # The same name and label, another picture.
    images.write_image(tmp_path / "data" / "trainA" / "covid-1.png", np.linspace(-1, 1, 1600).reshape(40, 40))
    with pytest.raises(UserError, match=r"trained on other images: train/covid-1\.png has other contents"):
        train(config(tmp_path / "data", run))


def test_domains_of_one_class_or_broken_images_are_refused(tmp_path):
    from conftest import write_dataset

    datasets = write_dataset(tmp_path / "data")
    (datasets / "trainA" / "normal-2.png").write_text("not an image")
    with pytest.raises(UserError, match=r"normal-2\.png"):
        train(config(datasets, tmp_path / "run"))
    for file in (datasets / "valA").glob("covid*"):
        file.unlink()
    with pytest.raises(UserError, match="valA: all its images are of one class"):
        train(config(datasets, tmp_path / "run"))


def test_what_is_no_finished_classifier_is_refused(run, datasets_dir, tmp_path):
    with pytest.raises(UserError, match="not a classifier"):
        Classifier.load(datasets_dir)
    for name in (classifiers.CONFIG, classifiers.RESULT):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(UserError, match="has not finished"):
        Classifier.load(tmp_path)
    (tmp_path / classifiers.MODEL).write_bytes((run / classifiers.MODEL).read_bytes() + b" ")
    with pytest.raises(UserError, match="checksum"):
        Classifier.load(tmp_path)


def test_a_model_that_brings_code_is_not_run(run, tmp_path):
    import keras

    from r2c_gan import files

    image = keras.Input((SIZE, SIZE, 1))
    trap = tmp_path / "trap"
    lines = keras.layers.Lambda(lambda x, name=str(trap): (open(name, "w").close(), x)[1])(image)
    model = keras.Model(image, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(lines)))
    model.save(tmp_path / classifiers.MODEL)
    assert zipfile.is_zipfile(tmp_path / classifiers.MODEL)
    trap.unlink(missing_ok=True)
    result = json.loads((run / classifiers.RESULT).read_text())
    (tmp_path / classifiers.CONFIG).write_bytes((run / classifiers.CONFIG).read_bytes())
    files.write_json(tmp_path / classifiers.RESULT, {**result, "sha256": files.sha256(tmp_path / classifiers.MODEL)})
    with pytest.raises(UserError, match="not a model that can be loaded safely"):
        Classifier.load(tmp_path)
    assert not trap.exists()


# --- Program ----------------------------------------------------------------------------------------------------------


def test_flags_are_the_settings():
    with no_programs_flags():
        option_flags.define(ClassifierConfig, "experiments.test")
        flags.FLAGS(["program", "--datasets_dir=d", "--epochs=3"])
        assert ClassifierConfig(**option_flags.given(ClassifierConfig)) == ClassifierConfig("d", epochs=3)


def test_help_of_the_program():
    done = start("experiments.classifiers", "--help")
    assert done.code == 0
    assert "--network: <densenet121|" in done.out and "--bn_momentum" in done.out

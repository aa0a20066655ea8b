"""Labels, streams and their errors. Images are flat or graded, so that a sample tells where it came from."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.data import datasets as data
from r2c_gan.data import images, streams
from r2c_gan.data.datasets import read_domain
from r2c_gan.data.images import ImageError, write_image
from r2c_gan.data.streams import UnpairedStream, read_batches
from r2c_gan.errors import UserError


def put(folder, *names, size=(8, 8), channels=1):
    """Flat images: the k-th of a folder has the gray level 10 k."""
    for index, name in enumerate(names):
        write_image(folder / name, np.full((*size, channels), 10 * index / 127.5 - 1))
    return folder


def identity(image):
    """Which of the flat images this is."""
    levels = np.unique(np.round((np.asarray(image) + 1) * 127.5).astype(int))
    assert len(levels) == 1
    return levels[0] // 10


def names(domain):
    return [file.relative_to(domain.folder).as_posix() for file in domain.files]


def flat_stream(tmp_path, count_a=5, count_b=2, **arguments):
    put(tmp_path / "a", *(f"{'covid' if k % 2 else 'normal'}_{k}.png" for k in range(count_a)))
    put(tmp_path / "b", *(f"{'covid' if k % 2 else 'normal'}_{k}.png" for k in range(count_b)))
    settings = {"load_size": 8, "crop_size": 8, "channels": 1, **arguments}
    return UnpairedStream(read_domain(tmp_path / "a"), read_domain(tmp_path / "b"), **settings)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_from_the_files_own_names(tmp_path):
    folder = put(tmp_path / "covid-study" / "trainA", "a_COVID.png", "b.png", "covid19.PNG".lower(), "normal.png")
    domain = read_domain(folder)
    assert names(domain) == ["a_COVID.png", "b.png", "covid19.png", "normal.png"]
    assert domain.labels.tolist() == [1, 0, 1, 0]  # not all 1: the parent folder's name says nothing
    assert domain.labels.dtype == np.int64
    assert len(domain) == 4


def test_labels_from_class_folders(tmp_path):
    folder = tmp_path / "trainA"
    put(folder / "COVID-19" / "batch", "x.png")
    put(folder / "Normal", "covid_is_not_meant.png")
    put(folder / "positive", "y.png")
    domain = read_domain(folder)
    assert dict(zip(names(domain), domain.labels, strict=True)) == {
        "COVID-19/batch/x.png": 1,
        "Normal/covid_is_not_meant.png": 0,
        "positive/y.png": 1,
    }


@pytest.mark.parametrize("where", ["domain", "dataset"])
def test_labels_from_a_file(tmp_path, where):
    folder = tmp_path / "trainA"
    put(folder, "a.png", "covid_b.png")
    put(folder / "sub", "c.png")
    labels = {"a.png": "Positive", "covid_b.png": " 0 ", "sub/c.png": "covid-19"}
    prefix = "" if where == "domain" else "trainA/"
    rows = [f"{prefix}{name},{label}" for name, label in labels.items()]
    if where == "dataset":
        rows.append("trainB/of_another_domain.png,covid")
    # As Excel writes it: a byte-order mark and a column more.
    text = "\ufefffile,label,remark\r\n" + "".join(f"{row},x\r\n" for row in rows)
    (folder if where == "domain" else tmp_path).joinpath("labels.csv").write_text(text, encoding="utf-8")
    domain = read_domain(folder)
    assert dict(zip(names(domain), domain.labels.tolist(), strict=True)) == {
        "a.png": 1,
        "covid_b.png": 0,
        "sub/c.png": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,covid\nb.png,normal\n", r"labels\.csv: its first line must name the columns file,label"),
        ("", r"labels\.csv: its first line must name"),
        ("file,label\na.png,covid\n", r"b\.png: has no label in .*labels\.csv \(1 such files\)"),
        (
            "file,label\na.png,covid\nb.png,no\nc.png,no\n",
            r"labels\.csv: .*c\.png is not in the folder \(1 such rows\)",
        ),
        ("file,label\na.png,covid\nb.png,no\na.png,no\n", r"labels\.csv, line 4: a\.png has a label already"),
        (
            "file,label\na.png,covid\nb.png,sick\n",
            r"labels\.csv, line 3: unknown label 'sick'; it must be one of control",
        ),
        ("file,label\na.png,covid\nb.png\n", r"labels\.csv, line 3: unknown label ''"),
        ("file,label\na.png,covid\nb.png,\xe9\n", r"labels\.csv: not UTF-8"),
    ],
)
def test_a_bad_labels_file_is_named(tmp_path, text, message):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_domain(tmp_path)


def test_an_unknown_class_folder_is_named(tmp_path):
    put(tmp_path / "trainA" / "sick", "a.png")
    with pytest.raises(UserError, match=r"trainA/sick: a class folder: unknown label 'sick'"):
        read_domain(tmp_path / "trainA")


def test_an_empty_or_missing_folder_is_named(tmp_path):
    (tmp_path / "trainA").mkdir()
    (tmp_path / "trainA" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"trainA: holds no image \(\.png, "):
        read_domain(tmp_path / "trainA")
    with pytest.raises(UserError, match=r"trainB: no such folder"):
        read_domain(tmp_path / "trainB")


def test_one_class_only_is_a_warning(tmp_path):
    put(tmp_path / "trainA", "a.png", "b.png")
    with pytest.warns(UserWarning, match=r"trainA: all 2 images are labelled 'control'"):
        assert read_domain(tmp_path / "trainA").labels.tolist() == [0, 0]


def test_limit_spreads_over_the_list(tmp_path):
    folder = put(tmp_path, *(f"{'covid' if k > 4 else 'normal'}_{k}.png" for k in range(10)))
    limited = read_domain(folder, limit=4)
    assert names(limited) == ["covid_5.png", "covid_8.png", "normal_1.png", "normal_4.png"]
    assert limited.labels.tolist() == [1, 1, 0, 0]
    assert len(read_domain(folder, limit=99)) == 10


# --- the training stream ---------------------------------------------------------------------------------------------


def epoch_of(stream, epoch, domain):
    count = stream.steps_per_epoch * stream.batch_size
    return [identity(stream.sample(domain, epoch, index)[0]) for index in range(count)]


@pytest.mark.parametrize(("count_a", "count_b"), [(5, 2), (3, 7), (4, 4)])
def test_an_epoch_is_the_longer_domain_once_and_the_shorter_one_cycles(tmp_path, count_a, count_b):
    stream = flat_stream(tmp_path, count_a, count_b)
    longest = max(count_a, count_b)
    assert stream.steps_per_epoch == longest
    for epoch in range(3):
        for domain, count in enumerate((count_a, count_b)):
            drawn = epoch_of(stream, epoch, domain)
            for start in range(0, longest, count):
                cycle = drawn[start : start + count]
                assert len(set(cycle)) == len(cycle)  # none twice before all have come
            if count == longest:
                assert sorted(drawn) == list(range(count))


def test_orders_differ_by_epoch_cycle_domain_and_seed(tmp_path):
    stream = flat_stream(tmp_path, 24, 12)
    orders = [epoch_of(stream, epoch, 0) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    shorter = epoch_of(stream, 0, 1)
    assert shorter[:12] != shorter[12:]
    other = UnpairedStream(*stream.domains, 8, 8, 1, seed=1)
    assert epoch_of(other, 0, 0) != orders[0]
    again = UnpairedStream(*stream.domains, 8, 8, 1, seed=0)
    assert [epoch_of(again, epoch, 0) for epoch in (2, 1)] == [orders[2], orders[1]]  # in any order of asking


def test_domains_are_not_drawn_in_step(tmp_path):
    stream = flat_stream(tmp_path, 24, 24)
    assert epoch_of(stream, 0, 0) != epoch_of(stream, 0, 1)


def test_labels_go_with_their_images(tmp_path):
    stream = flat_stream(tmp_path, 6, 3)
    covid = {domain: [int(name.startswith("covid")) for name in names(stream.domains[domain])] for domain in (0, 1)}
    for domain in (0, 1):
        for index in range(6):
            image, label = stream.sample(domain, 2, index)
            expected = [[1, 0], [0, 1]][covid[domain][sorted_place(stream, domain, image)]]
            assert label.tolist() == expected
            assert label.dtype == np.float32


def sorted_place(stream, domain, image):
    """The place in the sorted list of the file that holds this flat image."""
    for place, file in enumerate(stream.domains[domain].files):
        if int(file.stem.split("_")[1]) == identity(image):
            return place
    raise AssertionError("an image of no file")


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A stream of one image whose pixels are all different, drawn from many times."""
    folder = tmp_path_factory.mktemp("graded")
    rng = np.random.default_rng(3)
    image = rng.permutation(30 * 30).reshape(30, 30, 1) / 450 - 1
    for name in ("covid.png", "normal.png"):
        write_image(folder / name, image, bits=16)
    domain = read_domain(folder)
    stream = UnpairedStream(domain, domain, load_size=24, crop_size=20, channels=1)
    resized = images.resize(images.read_image(folder / "covid.png", 1), 24, 24)
    windows = {}
    for top in range(5):
        for left in range(5):
            window = resized[top : top + 20, left : left + 20]
            windows[window.tobytes()] = (top, left, False)
            windows[np.ascontiguousarray(window[:, ::-1]).tobytes()] = (top, left, True)
    samples = [stream.sample(0, epoch, index)[0] for epoch in range(400) for index in range(2)]
    return [windows[np.clip(sample, -1, 1).tobytes()] for sample in samples]  # a KeyError is a sample of no window


def test_crops_are_windows_of_the_resized_image_each_as_likely(graded):
    counts = np.zeros((5, 5))
    for top, left, _ in graded:
        counts[top, left] += 1
    expected = len(graded) / 25
    assert np.sum((counts - expected) ** 2 / expected) < 51.2  # the 99.9% point of chi-squared, 24 degrees of freedom


def test_half_are_mirrored_left_to_right(graded):
    mirrored = np.mean([flip for _, _, flip in graded])
    assert mirrored == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(graded)))


def test_crop_and_mirroring_are_independent(graded):
    at_the_top = [flip for top, _, flip in graded if top < 2]
    assert np.mean(at_the_top) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(at_the_top)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_values_types_and_channels(tmp_path, bits, channels):
    ramp = np.linspace(-1, 1, 20 * 14 * 3).reshape(20, 14, 3)
    write_image(tmp_path / "covid.png", ramp, bits)
    write_image(tmp_path / "normal.png", ramp[..., :1], bits)
    domain = read_domain(tmp_path)
    stream = UnpairedStream(domain, domain, 12, 12, channels)
    for index in range(2):
        image, _ = stream.sample(0, 0, index)
        assert image.shape == (12, 12, channels)
        assert image.dtype == np.float32
        assert -1 <= image.min() < -0.8
        assert 0.8 < image.max() <= 1


def test_a_16_bit_image_keeps_its_depth(tmp_path):
    write_image(tmp_path / "covid.png", np.full((8, 8), 1001 / 65535 * 2 - 1), bits=16)
    write_image(tmp_path / "normal.png", np.zeros((8, 8)))
    domain = read_domain(tmp_path)
    stream = UnpairedStream(domain, domain, 8, 8, 1)
    found = {float(stream.sample(0, 0, index)[0][0, 0, 0]) for index in range(2)}
    assert any(value == pytest.approx(1001 / 65535 * 2 - 1, abs=1e-6) for value in found)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"crop_size": 9}, "--crop_size=9: must be from 1 to --load_size=8"),
        ({"crop_size": 0}, "--crop_size=0"),
        ({"batch_size": 6}, "--batch_size=6: must be from 1 to the 5 images"),
        ({"batch_size": 0}, "--batch_size=0"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_named(tmp_path, arguments, flag):
    with pytest.raises(UserError, match=flag):
        flat_stream(tmp_path, **arguments)


# --- as a tf.data.Dataset --------------------------------------------------------------------------------------------


def collect(dataset):
    return [tuple(array.numpy() for pair in element for array in pair) for element in dataset]


def test_dataset_has_known_shapes_and_cardinality(tmp_path):
    stream = flat_stream(tmp_path, 5, 2, batch_size=2, load_size=10)
    assert stream.steps_per_epoch == 2  # the fifth image is left over, another one each epoch
    dataset = stream.dataset(epochs=3)
    assert int(dataset.cardinality()) == 6
    shapes = tf.nest.map_structure(lambda spec: spec.shape.as_list(), dataset.element_spec)
    assert shapes == (([2, 8, 8, 1], [2, 2]), ([2, 8, 8, 1], [2, 2]))
    elements = collect(dataset)
    assert len(elements) == 6
    for image_a, label_a, image_b, _ in elements:
        assert image_a.dtype == label_a.dtype == image_b.dtype == np.float32


def test_dataset_is_the_samples_in_order(tmp_path):
    stream = flat_stream(tmp_path, 5, 2, batch_size=2)
    for number, (image_a, label_a, image_b, label_b) in enumerate(collect(stream.dataset(2))):
        epoch, step = divmod(number, 2)
        for place in range(2):
            for domain, image, label in ((0, image_a, label_a), (1, image_b, label_b)):
                expected_image, expected_label = stream.sample(domain, epoch, 2 * step + place)
                np.testing.assert_array_equal(image[place], expected_image)
                np.testing.assert_array_equal(label[place], expected_label)


def test_a_resumed_dataset_is_the_rest_of_the_whole(graded, tmp_path):
    stream = flat_stream(tmp_path, 5, 3, load_size=12, seed=4)
    whole = collect(stream.dataset(epochs=4))
    again = flat_stream(tmp_path, 5, 3, load_size=12, seed=4)
    resumed = again.dataset(epochs=4, initial_step=3 * again.steps_per_epoch)
    assert int(resumed.cardinality()) == 5
    for one, other in zip(whole[15:], collect(resumed), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not int(stream.dataset(epochs=2, initial_step=2 * stream.steps_per_epoch).cardinality())


# --- broken files ----------------------------------------------------------------------------------------------------


def break_png(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_truncated_file_is_named_before_the_training(tmp_path):
    stream = flat_stream(tmp_path)
    seen = []
    data.check_images(stream.domains, lambda files: (seen.append(file) or file for file in files))
    assert len(seen) == 7
    break_png(tmp_path / "b" / "covid_1.png")
    with pytest.raises(ImageError, match=r"b/covid_1\.png: truncated"):
        data.check_images(stream.domains)


def test_a_file_that_breaks_later_is_named_too(tmp_path):
    stream = flat_stream(tmp_path)
    break_png(tmp_path / "a" / "covid_3.png")
    with pytest.raises(tf.errors.OpError):
        collect(stream.dataset(1))
    assert isinstance(stream.error, ImageError)
    assert str(tmp_path / "a" / "covid_3.png") in str(stream.error)


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_batches_for_evaluation(tmp_path):
    put(tmp_path, *(f"{k}.png" for k in range(5)), size=(9, 14))
    files = images.list_images(tmp_path)
    batches = list(read_batches(files, size=6, channels=3, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 6, 6, 3), (2, 6, 6, 3), (1, 6, 6, 3)]
    assert [identity(image) for batch in batches for image in batch] == [0, 1, 2, 3, 4]
    assert all(batch.dtype == np.float32 for batch in batches)
    break_png(files[3])
    with pytest.raises(ImageError, match=r"3\.png"):
        list(read_batches(files, 6, 3, 2))


def test_training_and_evaluation_read_the_same_levels(tmp_path):
    """12 bits in 16 are stretched in both alike, and by another rule where one is given."""
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        levels = np.linspace(200, 4000, 16 * 16).astype(np.uint16).reshape(16, 16)
        for name in ("covid-1.png", "control-1.png"):
            cv2.imwrite(str(tmp_path / folder / name), levels)
    domains = [data.read_domain(tmp_path / folder) for folder in ("trainA", "trainB")]
    for window, expected in (("auto", (levels - 200) / 1900 - 1), ("full", levels / 32767.5 - 1)):
        (batch,) = streams.read_batches(domains[0].files, 16, 1, 2, window)
        stream = streams.UnpairedStream(*domains, 16, 16, 1, window=window)
        sample = stream.sample(0, 0, 0)[0][..., 0]
        np.testing.assert_allclose(batch[0, ..., 0], expected, atol=1e-5)
        np.testing.assert_allclose(np.sort(sample, axis=1), expected, atol=1e-5)  # mirrored or not
    with pytest.raises(UserError, match="--window=x"):
        streams.UnpairedStream(*domains, 16, 16, 1, window="x")

"""What the figures show: the data drawn, the places and colours of images, and how the files are written."""

import concurrent.futures
import subprocess
import sys

import cv2
import numpy as np
import pytest

from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures, metrics


def read(path):
    """A PNG as uint8 RGB."""
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that are saved, so that a test can ask what is in them."""
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    return saved


def panels(figure):
    """Title (as on the left of a panel) -> axes."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}


def texts(figure):
    return [text.get_text() for text in figure.texts]


def history(epochs):
    falling = 2.0 * 0.9 ** np.arange(epochs) + 1
    return {
        "epoch": range(1, epochs + 1),
        "learning_rate": [2e-4] * epochs,
        "generator_loss": falling,
        "discriminator_loss": falling / 2,
        "adversarial_a2b": falling,
        "cycle_a": falling,
        "val_cycle_a": [value if epoch % 2 else None for epoch, value in enumerate(falling)],
        "class_a2b2a": falling,
        "discriminator_b_fake": falling,
        "accuracy": [0.9] * epochs,
        "seconds": [10] * epochs,
    }


class TestLosses:
    @pytest.mark.parametrize("epochs", [0, 1, 3, 300])
    def test_any_number_of_epochs(self, tmp_path, epochs):
        figures.save_losses(history(epochs), tmp_path / "losses.png")
        assert read(tmp_path / "losses.png").std() > 10

    def test_one_panel_a_family(self, drawn):
        figures.save_losses(history(5), "losses.png")
        titles = [title.split(":")[0] for title in panels(drawn[0])]
        assert titles == [
            "Total losses",
            "Adversarial",
            "Discriminators",
            "Cycle consistency",
            "Classification of what a generator is fed",
            "Scores",
            "Learning rate",
        ]

    def test_values_and_gaps(self, drawn):
        columns = {"epoch": [3, 4, 5, 6], "cycle_a": [4.0, "2.0", 3.0, 1.0], "val_cycle_a": ["", 5.0, None, np.nan]}
        figures.save_losses(columns, "losses.png")
        (axes,) = panels(drawn[0]).values()
        training, validation = axes.get_lines()
        np.testing.assert_array_equal(training.get_xydata(), [(3, 4), (4, 2), (5, 3), (6, 1)])
        np.testing.assert_array_equal(validation.get_xydata(), [(4, 5)])
        assert training.get_color() == validation.get_color()
        assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")

    def test_all_values_lie_within_the_axes(self, drawn):
        columns = history(400)
        columns["cycle_a"] = np.random.default_rng(0).uniform(1, 9, 400)
        figures.save_losses(columns, "losses.png")
        low, high = panels(drawn[0])["Cycle consistency: there and back"].get_ylim()
        assert low <= columns["cycle_a"].min() and columns["cycle_a"].max() <= high

    def test_a_long_course_gets_its_running_mean(self, drawn):
        noise = np.random.default_rng(0).normal(5, 1, 1000)
        figures.save_losses({"cycle_a": noise}, "losses.png")
        (axes,) = panels(drawn[0]).values()
        faint, strong = (line.get_ydata() for line in axes.get_lines())
        np.testing.assert_array_equal(faint, noise)
        assert strong[500] == pytest.approx(noise[490:510].mean())
        assert strong[0] == pytest.approx(noise[:10].mean())  # nothing is invented beyond the ends

    @pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log"), (0.0, "linear")])
    def test_logarithmic_where_a_loss_falls_far(self, drawn, last, scale):
        figures.save_losses({"cycle_a": [1.0, last]}, "losses.png")
        (axes,) = panels(drawn[0]).values()
        assert axes.get_yscale() == scale

    @pytest.mark.parametrize(
        ("column", "label"),
        [
            ("generator_loss", "generators"),
            ("class_a2b2a", "A → B → A"),
            ("cycle_b", "B → A → B"),
            ("identity_a", "A → A"),
            ("discriminator_b_fake", "B, generated"),
            ("val_psnr_input", "input"),
            ("ssim_restored_2", "restored 2"),
            ("f1", "F1"),
        ],
    )
    def test_labels_in_plain_words(self, drawn, column, label):
        other = {
            "generator_loss": "discriminator_loss",
            "f1": "accuracy",
            "val_psnr_input": "val_psnr_restored",
        }.get(column, column.split("_")[0] + "_c")
        figures.save_losses({column: [1.0, 1.0], other: [1.0, 1.0]}, "losses.png")
        (axes,) = panels(drawn[0]).values()
        assert label in [text.get_text() for text in axes.get_legend().get_texts()]


class TestRoc:
    LABELS = np.array([0, 0, 0, 1, 1, 1])
    SCORES = np.array([0.1, 0.4, 0.6, 0.3, 0.8, 0.9])

    def test_curve_decision_and_legend(self, drawn):
        figures.save_roc(self.LABELS, np.stack([1 - self.SCORES, self.SCORES], axis=1), "roc.png")
        axes = drawn[0].axes[0]
        _, curve, decision = axes.get_lines()
        area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
        assert area == pytest.approx(7 / 9)  # 7 of the 9 pairs are in the right order
        np.testing.assert_allclose(decision.get_xydata(), [(1 / 3, 2 / 3)])
        assert "AUROC 0.778 (95% interval" in axes.get_legend().get_texts()[1].get_text()

    def test_a_perfect_classifier_gets_no_interval(self, drawn):
        figures.save_roc(self.LABELS, self.LABELS.astype(float), "roc.png")
        assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()][1] == "AUROC 1.000"

    def test_one_class(self, tmp_path, drawn):
        figures.save_roc([0, 0], [0.1, 0.7], tmp_path / "roc.png")
        assert "one class" in drawn[0].axes[0].texts[0].get_text()

    def test_file(self, tmp_path):
        figures.save_roc(self.LABELS, self.SCORES, tmp_path / "roc.png")
        assert read(tmp_path / "roc.png").shape == (5 * figures.DPI, 5 * figures.DPI, 3)


class TestConfusionMatrix:
    def test_counts_and_shares(self, drawn):
        figures.save_confusion_matrix([[6, 2], [0, 0]], "matrix.png")
        axes = drawn[0].axes[0]
        written = [text.get_text() for text in axes.texts]
        assert written == ["6", "75.0%", "2", "25.0%", "0", "no cases", "0", "no cases"]
        assert axes.get_title() == "6 of 8 images decided correctly"

    def test_darkness_is_the_share_of_the_row(self, tmp_path):
        figures.save_confusion_matrix([[900, 100], [0, 5]], tmp_path / "matrix.png", ("healthy", "ill"))
        image = read(tmp_path / "matrix.png").mean(axis=-1)
        height, width = image.shape
        # A quarter of the way into the cells, away from the texts.
        (upper_left, upper_right), (lower_left, lower_right) = (
            [image[int(y * height), int(x * width)] for x in (0.2, 0.62)] for y in (0.15, 0.57)
        )
        assert lower_right < upper_left < upper_right < lower_left


def flat(value, height=20, width=20):
    return np.full((height, width), value, np.float32)


class TestPanel:
    def test_images_lie_in_their_places_in_gray(self, tmp_path):
        rows = [[flat(-1), flat(0)], [flat(1)[..., None], flat(-2)]]
        figures.save_panel(rows, tmp_path / "panel.png", ["left", "right"])
        image = read(tmp_path / "panel.png")
        height, width, _ = image.shape
        centres = [[image[int(y * height), int(x * width)].tolist() for x in (0.25, 0.75)] for y in (0.3, 0.75)]
        assert centres == [[[0] * 3, [128] * 3], [[255] * 3, [0] * 3]]

    def test_limits(self, tmp_path):
        figures.save_panel([[flat(0.25)]], tmp_path / "panel.png", ["x"], limits=(0, 1))
        image = read(tmp_path / "panel.png")
        assert image[image.shape[0] // 2, image.shape[1] // 2, 0] == 64

    def test_colour(self, tmp_path):
        red = np.stack([flat(1), flat(-1), flat(-1)], axis=-1)
        figures.save_panel([[red]], tmp_path / "panel.png", ["x"])
        image = read(tmp_path / "panel.png")
        assert image[image.shape[0] // 2, image.shape[1] // 2].tolist() == [255, 0, 0]

    def test_texts(self, drawn):
        name = "sub-S11596_ses-E21420_run-1_bp-chest_vp-ap_dx.png"
        captions = [["$a$", "b"], ["", "c"]]
        figures.save_panel([[flat(0), None]] * 2, "panel.png", ["one", "two"], [name, "$x$"], captions)
        written = texts(drawn[0])
        assert {"one", "two", "$a$", "b", "c", "$x$"} <= set(written)
        (shortened,) = [text for text in written if "…" in text]
        assert shortened.startswith("sub-S11596") and shortened.endswith("dx.png") and len(shortened) < len(name)

    def test_a_file_name_is_not_read_as_mathematics(self, tmp_path):
        names = [r"$\no_such_symbol$"]
        figures.save_panel([[flat(0)]], tmp_path / "panel.png", names, names, [names])
        assert (tmp_path / "panel.png").exists()

    def test_images_are_not_stretched(self, tmp_path):
        figures.save_panel([[flat(-1, 20, 40)]], tmp_path / "panel.png", ["x"])
        below_title = read(tmp_path / "panel.png")[40:, :, 0]
        dark = np.argwhere(below_title < 10)
        height, width = np.ptp(dark, axis=0) + 1
        assert width / height == pytest.approx(2, abs=0.02)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"rows": []},
            {"rows": [[None]]},
            {"rows": [[flat(0), flat(0)]]},
            {"rows": [[flat(0)]], "row_titles": ["a", "b"]},
            {"rows": [[flat(0)]], "captions": [["a", "b"]]},
        ],
    )
    def test_refuses_what_does_not_fit(self, tmp_path, arguments):
        with pytest.raises(ValueError):
            figures.save_panel(path=tmp_path / "panel.png", column_titles=["x"], **arguments)
        assert not list(tmp_path.iterdir())


class TestRestorationPanel:
    def test_captions(self, drawn):
        rng = np.random.default_rng(0)
        clean = rng.uniform(-0.5, 0.5, (2, 16, 16, 1))
        poor, once, twice = (clean + rng.normal(0, noise, clean.shape) for noise in (0.3, 0.2, 0.1))
        figures.save_restoration_panel(
            poor, [once, twice], "panel.png", [clean[0], None], probabilities=[[0.25, 0.5], [0.75, 1.0]]
        )
        written = texts(drawn[0])
        titles = ["poor", "restored, pass 1", "restored, pass 2", "clean", "pass 2 − poor"]
        assert [text for text in written if text in titles] == titles
        decibels = [f"{metrics.psnr(clean[0], images[0]):.1f} dB" for images in (poor, once, twice)]
        first_case = [f"{decibels[0]},  p(COVID-19) 0.25", f"{decibels[1]},  p(COVID-19) 0.75", decibels[2]]
        second_case = ["p(COVID-19) 0.50", "p(COVID-19) 1.00"]
        assert [text for text in written if text and text not in titles] == first_case + second_case

    @pytest.mark.parametrize("channels", [1, 3])
    def test_difference_is_red_where_lighter(self, tmp_path, channels):
        poor = np.zeros((1, 30, 30, channels))
        restored = poor.copy()
        restored[:, :, :10] = 0.4
        restored[:, :, 20:] = -0.4
        figures.save_restoration_panel(poor, [restored], tmp_path / "panel.png")
        image = read(tmp_path / "panel.png").astype(int)
        row = image[image.shape[0] // 2]
        # Three cells of 300 pixels, 9 apart; the last one holds the difference.
        red, white, blue = (row[9 + 2 * 309 + x] for x in (50, 150, 250))
        assert red[0] - red[2] > 50 and blue[2] - blue[0] > 50 and white.min() > 240

    def test_difference_is_that_of_the_last_pass(self, drawn):
        figures.save_restoration_panel([flat(0.5)], [[flat(0.1)], [flat(0.2)]], "panel.png", [flat(1)])
        (difference,) = drawn[0].axes[4].get_images()
        np.testing.assert_allclose(difference.get_array(), 0.2 - 0.5, atol=1e-6)

    def test_scale_is_fixed(self, drawn):
        figures.save_restoration_panel([flat(0)], [[flat(0.1)]], "panel.png", difference_limit=0.7)
        difference = drawn[0].axes[2].get_images()[0]
        assert difference.get_clim() == (-0.7, 0.7)

    def test_refuses_lists_of_different_lengths(self, tmp_path):
        with pytest.raises(ValueError):
            figures.save_restoration_panel([flat(0)], [[flat(0), flat(0)]], tmp_path / "panel.png")


class TestTrainingSamples:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_six_columns_and_a_row_for_each_pair(self, tmp_path, channels):
        values = np.array([-1, -0.6, -0.2, 0.2, 0.6, 1])
        batches = [np.stack([np.full((130, 140, channels), value * sign) for sign in (1, -1)]) for value in values]
        figures.save_training_samples(*batches, tmp_path / "samples.png")
        image = read(tmp_path / "samples.png")
        assert image.shape == (18 + 2 * 132, 6 * 142 - 2 + 8, 3)
        lefts = [142 * k + 8 * (k >= 3) for k in range(6)]
        for row, sign in enumerate((1, -1)):
            for left, value in zip(lefts, values, strict=True):
                cell = image[18 + 132 * row :, left:][:130, :140]
                assert np.abs(cell - (1 + sign * value) * 127.5).max() <= 0.5

    def test_pixels_of_small_images_are_repeated(self, tmp_path):
        image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 1))
        figures.save_training_samples(*[image] * 6, tmp_path / "samples.png")
        cell = read(tmp_path / "samples.png")[18:146, :128, 0]
        expected = np.repeat(np.repeat(image[0, ..., 0], 4, axis=0), 4, axis=1)
        assert np.abs(cell / 127.5 - 1 - expected).max() < 0.5 / 127

    def test_what_is_not_finite_is_black(self, tmp_path):
        figures.save_training_samples(*[np.full((1, 128, 128, 1), np.nan)] * 6, tmp_path / "samples.png")
        assert read(tmp_path / "samples.png")[18:146, :128].max() == 0

    def test_refuses_batches_of_different_shapes(self, tmp_path):
        batch = np.zeros((1, 16, 16, 1))
        with pytest.raises(ValueError, match="one shape"):
            figures.save_training_samples(*[batch] * 5, batch[:, :8], tmp_path / "samples.png")


class TestFiles:
    def test_what_cannot_be_written_is_said(self, tmp_path):
        (tmp_path / "folder").write_text("a file where a folder should be")
        with pytest.raises(UserError, match="cannot be written"):
            figures.save_losses(history(2), tmp_path / "folder" / "losses.png")

    def test_any_thread_writes_the_same_bytes(self, tmp_path):
        def draw(name):
            figures.save_losses(history(3), tmp_path / name / "losses.png")
            figures.save_panel([[flat(0)]], tmp_path / name / "panel.png", ["x"])

        draw("alone")
        names = [str(k) for k in range(4)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(draw, names))
        for file in ("losses.png", "panel.png"):
            expected = (tmp_path / "alone" / file).read_bytes()
            assert all((tmp_path / name / file).read_bytes() == expected for name in names)

    def test_pyplot_is_not_imported(self):
        code = "import sys, r2c_gan.evaluation.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

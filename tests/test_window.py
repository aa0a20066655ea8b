"""Which stored values become black and white."""

import numpy as np
import pytest

from r2c_gan.data.window import Window, warning
from r2c_gan.errors import UserError

FILM = np.linspace(100, 4000, 24 * 30).astype(np.uint16).reshape(24, 30)  # 12 bits in a container of 16


def scaled(text, values=FILM, full=(0, 65535), deep=True, valid=None):
    return Window.parse(text).scale(values, full, deep, valid)


@pytest.mark.parametrize("text", ["full", "auto", "min-max", "percentile", "2048,4096", "-600,1500", "40.5,1"])
def test_a_window_is_written_as_it_was_read(text):
    assert str(Window.parse(text)) == text
    assert Window.parse(Window.parse(text)) == Window.parse(text)


@pytest.mark.parametrize("text", ["", "wide", "1", "1,2,3", "1,0", "1,nan", "inf,3", "1;2", "Full"])
def test_other_text_is_refused_by_the_name_of_the_flag(text):
    with pytest.raises(UserError, match=r"--window=.*: must be auto, full, min-max, percentile or C,W"):
        Window.parse(text)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_full_range_is_exact(dtype):
    top = np.iinfo(dtype).max
    levels = np.arange(int(top) + 1).astype(dtype)
    found = scaled("full", levels, (0, int(top)), top > 255).pixels
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, levels.astype(np.float32) / top * 2 - 1)


def test_auto_takes_what_occurs_of_more_than_8_bits():
    expected = (FILM - 100.0) / 3900 * 2 - 1
    np.testing.assert_allclose(scaled("auto").pixels, expected, atol=1e-6)
    np.testing.assert_allclose(scaled("min-max").pixels, expected, atol=1e-6)
    np.testing.assert_allclose(scaled("auto", full=(0, 4095), deep=False).pixels, FILM / 2047.5 - 1, atol=1e-6)


def test_percentiles_leave_out_a_burned_in_marker():
    values = FILM.copy()
    values[0, :2] = 65535
    assert scaled("percentile", values).pixels[1:].std() > 0.5 > 0.1 > scaled("min-max", values).pixels[1:].std()
    low, high = np.percentile(values, (0.5, 99.5), method="nearest")
    expected = np.clip((values - float(low)) / (float(high) - low), 0, 1) * 2 - 1
    np.testing.assert_allclose(scaled("percentile", values).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float64])
@pytest.mark.parametrize("center, width", [(2000, 1000), (40.5, 3), (300, 2), (5000, 20_000), (2000, 1)])
def test_linear_is_the_formula_of_dicom(center, width, dtype):
    values = FILM.astype(dtype)
    x = FILM.astype(np.float64)
    if width == 1:
        expected = np.where(x <= center - 0.5, -1.0, 1.0)
        assert set(np.unique(expected)) == {-1, 1}
    else:
        expected = np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 2 - 1
    np.testing.assert_allclose(scaled(f"{center},{width}", values).pixels, expected, atol=1e-5)


def test_signed_values_do_not_wrap():
    values = np.array([[-32768, 0, 32767]], np.int16)
    np.testing.assert_allclose(scaled("min-max", values, (-32768, 32767)).pixels, [[-1, 1 / 65535, 1]], atol=1e-6)
    np.testing.assert_allclose(scaled("full", values, (-32768, 32767)).pixels, [[-1, 1 / 65535, 1]], atol=1e-6)


def test_pixels_that_are_no_picture_do_not_bear_on_the_range():
    values = FILM.copy()
    values[:, :3] = 65535
    valid = values < 65535
    np.testing.assert_allclose(
        scaled("auto", values, valid=valid).pixels[valid], scaled("auto", FILM[:, 3:]).pixels.ravel(), atol=1e-6
    )
    nothing = scaled("auto", values, valid=np.zeros_like(valid))
    assert nothing.scaling == "full range" and np.isfinite(nothing.pixels).all()


def test_one_level_alone_keeps_its_place_in_the_full_range():
    flat = scaled("auto", np.full((3, 4), 65535, np.uint16))
    assert (flat.pixels == 1).all() and flat.scaling == "full range" and flat.warning


def test_a_ghost_is_warned_of_and_a_film_is_not():
    assert "less than a quarter" in scaled("full").warning
    assert scaled("auto").warning is None
    assert warning(np.linspace(-1, -0.4, 1000)) is None
    assert warning(np.linspace(-1, -0.6, 1000))
    marked = np.linspace(-1, -0.9, 1000)
    marked[:2] = 1
    assert warning(marked)


def test_the_scaling_is_told_in_words_that_files_share():
    other = FILM + np.uint16(7)
    assert scaled("auto").scaling == scaled("auto", other).scaling == "values that occur (no window in the file)"
    assert scaled("1,2").scaling == "window 1,2"

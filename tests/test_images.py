"""Pixels in and out: every format, every kind of bad file, exact round trips."""

import hashlib
import io
import os
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from r2c_gan.data import images
from r2c_gan.data.images import ImageError
from r2c_gan.errors import UserError


def smooth(height=24, width=31):
    """A gray uint8 test image with all of its rows and columns different."""
    y, x = np.mgrid[:height, :width]
    return (3 * y + 5 * x + 20).astype(np.uint8)


def colour(height=24, width=31):
    gray = smooth(height, width)
    return np.stack([gray, 255 - gray, gray // 2], axis=-1)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def test_gray_png_maps_0_and_255_to_the_ends(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 255], [51, 204]], np.uint8))
    image = images.read_image(path)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[..., 0], [[-1, 1], [-0.6, 0.6]], atol=1e-6)
    assert image.shape == (2, 2, 1)


def test_colour_keeps_the_order_red_green_blue(tmp_path):
    image = images.read_image(save(tmp_path / "a.png", colour()))
    np.testing.assert_allclose(image, colour() / 127.5 - 1, atol=1e-6)


def test_one_channel_is_luma_and_three_repeat(tmp_path):
    gray_path, colour_path = save(tmp_path / "g.png", smooth()), save(tmp_path / "c.png", colour())
    repeated = images.read_image(gray_path, channels=3)
    np.testing.assert_array_equal(repeated, np.repeat(images.read_image(gray_path), 3, axis=-1))
    luma = colour() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(images.read_image(colour_path, channels=1)[..., 0], luma / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="channels"):
        images.read_image(gray_path, channels=2)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_depth(tmp_path, suffix, channels):
    stored = (np.arange(24 * 31 * channels) * 29).astype(np.uint16).reshape(24, 31, channels)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), stored[..., ::-1])
    image = images.read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(image, stored / 32767.5 - 1, atol=1e-6)


def test_one_bit_and_palette(tmp_path):
    bits = smooth() > 100
    Image.fromarray(bits).save(tmp_path / "one.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "one.png")[..., 0], np.where(bits, 1, -1))
    palette = Image.fromarray(colour()).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_allclose(
        images.read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")) / 127.5 - 1, atol=1e-6
    )


@pytest.mark.parametrize("gray", [True, False])
def test_transparency_is_laid_over_black(tmp_path, gray):
    base, alpha = (smooth() if gray else colour()), 255 - smooth()
    picture = Image.fromarray(base)
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "a.png")
    expected = base.reshape(24, 31, -1) / 255 * (alpha[..., None] / 255) * 2 - 1
    np.testing.assert_allclose(images.read_image(tmp_path / "a.png"), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path, mode):
    picture = Image.fromarray(smooth() if mode == "L" else colour()).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    image = images.read_image(tmp_path / "a.jpg")
    expected = np.asarray(picture.convert("L" if mode == "L" else "RGB")).reshape(24, 31, -1) / 127.5 - 1
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 0.03


def test_orientation_tag_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # stored rotated: turn by 90 degrees clockwise to show
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", quality=95, exif=exif)
    expected = np.rot90(smooth(), -1) / 127.5 - 1
    assert np.abs(images.read_image(tmp_path / "a.jpg")[..., 0] - expected).max() < 0.1


def test_contents_decide_not_the_suffix(tmp_path):
    save(tmp_path / "really_a.png", colour(), format="JPEG")
    assert images.read_image(tmp_path / "really_a.png").shape == (24, 31, 3)


def test_one_pixel(tmp_path):
    path = save(tmp_path / "a.png", np.array([[255]], np.uint8))
    np.testing.assert_array_equal(images.read_image(path), [[[1]]])


# --- bad files -------------------------------------------------------------------------------------------------------


def encoded(kind):
    rng = np.random.default_rng(0)
    noisy = (colour(40, 60) // 2 + rng.integers(0, 100, (40, 60, 3))).astype(np.uint8)
    buffer = io.BytesIO()
    options = {"progressive": True} if kind == "progressive" else {}
    Image.fromarray(noisy).save(buffer, "JPEG" if kind == "progressive" else kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive", "TIFF"])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.8, 0.95, 0.995])
def test_truncated_files_are_refused_and_stderr_stays_empty(tmp_path, capfd, kind, fraction):
    data = encoded(kind)
    path = tmp_path / "cut.png"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ImageError) as caught:
        images.read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert capfd.readouterr().err == ""


def test_damaged_png_is_refused_and_stderr_stays_empty(tmp_path, capfd):
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="damaged PNG"):
        images.read_image(tmp_path / "a.png")
    assert capfd.readouterr().err == ""


def test_a_wrong_colour_profile_does_not_matter(tmp_path, capfd):
    Image.fromarray(colour()).save(tmp_path / "a.png", icc_profile=b"no profile at all")
    np.testing.assert_allclose(images.read_image(tmp_path / "a.png"), colour() / 127.5 - 1, atol=1e-6)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("contents", "says"),
    [(b"", "empty"), (b"these are words, not pixels" * 9, "not a PNG"), (b"GIF89a" * 9, "not a PNG")],
)
def test_what_is_no_image_is_refused(tmp_path, contents, says):
    path = tmp_path / "a.png"
    path.write_bytes(contents)
    with pytest.raises(ImageError, match=says) as caught:
        images.read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_folder_and_link_to_itself(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    for name, says in [("none.png", "no such file"), ("folder.png", "a directory"), ("loop.png", "cannot be read")]:
        with pytest.raises(ImageError, match=says):
            images.read_image(tmp_path / name)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes: reading it would wait for ever
    os.symlink(tmp_path / "pipe.png", tmp_path / "link.dcm")
    for path, says in [
        (tmp_path / "pipe.png", "a named pipe"),
        (tmp_path / "link.dcm", "a named pipe"),
        ("/dev/zero", "a device"),
        ("/dev/null", "a device"),
        (tmp_path, "a directory"),
    ]:
        with pytest.raises(ImageError, match=f"not a file but {says}"):
            images.read_image(path)
        assert not images.is_dicom(path)
    assert images.list_images(tmp_path, unnamed_dicom=True)  # does not wait either


def test_a_name_that_is_not_utf_8_or_cannot_be_one(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    save(path, smooth(), format="PNG")
    assert images.read_image(path).shape == (24, 31, 1)
    (tmp_path / "words").write_text("words")
    os.replace(tmp_path / "words", path)
    with pytest.raises(ImageError, match="not a PNG"):
        images.read_image(path)
    for name in ("a\0b.png", "a" * 300 + ".png"):
        with pytest.raises(ImageError, match="cannot be read"):
            images.read_image(tmp_path / name)


def test_a_file_larger_than_any_film_is_not_read(tmp_path):
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match="bytes; at most"):
        images.read_image(tmp_path / "a.tif")


def test_a_file_says_how_its_levels_were_chosen(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), smooth().astype(np.uint16) * 16)
    cv2.imwrite(str(tmp_path / "dark.png"), smooth() // 8)
    deep, full = (images.read_file(tmp_path / "deep.png", window=window) for window in ("auto", "full"))
    assert (deep.scaling, deep.warning) == ("values that occur (no window in the file)", None)
    assert full.scaling == "full range" and "less than a quarter" in full.warning
    assert "less than a quarter" in images.read_file(tmp_path / "dark.png", window="auto").warning
    with pytest.raises(UserError, match="--window=x"):
        images.read_image(tmp_path / "deep.png", window="x")


def test_what_was_written_with_16_bits_is_read_as_it_is(tmp_path):
    for shape in ((24, 31, 1), (24, 31, 3)):
        image = np.random.default_rng(0).uniform(-0.5, 0.1, shape).astype(np.float32)
        images.write_image(tmp_path / "a.png", image, 16)
        np.testing.assert_allclose(images.read_image(tmp_path / "a.png", window="auto"), image, atol=2e-5)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_file_without_read_permission(tmp_path):
    path = save(tmp_path / "a.png", smooth())
    path.chmod(0)
    with pytest.raises(ImageError, match="cannot be read"):
        images.read_image(path)


def test_too_wide_is_refused_by_its_header(tmp_path):
    save(tmp_path / "wide.png", np.zeros((1, images.MAX_SIDE + 1), np.uint8))
    with pytest.raises(ImageError, match=f"{images.MAX_SIDE + 1} x 1 pixels; at most"):
        images.read_image(tmp_path / "wide.png")
    save(tmp_path / "just.png", np.zeros((1, images.MAX_SIDE), np.uint8))
    assert images.read_image(tmp_path / "just.png").shape == (1, images.MAX_SIDE, 1)


def test_float_tiff_is_refused(tmp_path):
    save(tmp_path / "a.tif", smooth().astype(np.float32))
    with pytest.raises(ImageError, match="32-bit floating-point numbers; 1 to 16 bit"):
        images.read_image(tmp_path / "a.tif")


# --- DICOM -----------------------------------------------------------------------------------------------------------


def write_dicom(path, stored, bits_stored=12, **elements):
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'dicom'")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"  # computed radiography
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = stored.shape[2] if stored.ndim == 3 else 1
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


@pytest.fixture
def stored():
    return np.linspace(0, 4095, 24 * 30).astype(np.uint16).reshape(24, 30)


def test_dicom_without_a_window_uses_bits_stored(tmp_path, stored):
    image = images.read_image(write_dicom(tmp_path / "a.dcm", stored))
    assert image.shape == (24, 30, 1)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[..., 0], stored / 2047.5 - 1, atol=1e-6)


def test_dicom_monochrome1_is_inverted_once(tmp_path, stored):
    path = write_dicom(
        tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"
    )
    np.testing.assert_allclose(images.read_image(path)[..., 0], 1 - stored / 2047.5, atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("slope", [2.0, -1.0])
def test_dicom_window_after_rescale(tmp_path, stored, slope, inverted):
    """Against the formula of PS3.3 C.11.2.1.2.1, on the rescaled values."""
    center, width = (3000.0, 2001.0) if slope > 0 else (-2000.0, 2001.0)
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        RescaleSlope=slope,
        RescaleIntercept=-100.0,
        RescaleType="US",
        WindowCenter=[center, 1.0],
        WindowWidth=[width, 2.0],
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    x = stored * slope - 100
    shown = np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    expected = (1 - shown if inverted else shown) * 2 - 1
    assert expected.min() == -1 and expected.max() == 1
    np.testing.assert_allclose(images.read_image(path)[..., 0], expected, atol=1e-6)


def test_dicom_negative_slope_without_a_window(tmp_path, stored):
    path = write_dicom(tmp_path / "a.dcm", stored, RescaleSlope=-1.0, RescaleIntercept=4095.0, RescaleType="US")
    np.testing.assert_allclose(images.read_image(path)[..., 0], 1 - stored / 2047.5, atol=1e-6)


def test_dicom_sigmoid_window(tmp_path, stored):
    path = write_dicom(tmp_path / "a.dcm", stored, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    expected = 2 / (1 + np.exp(-4 * (stored - 2000.0) / 800)) - 1
    np.testing.assert_allclose(images.read_image(path)[..., 0], expected, atol=1e-5)


def test_dicom_voi_lut_is_preferred_and_sets_the_range(tmp_path, stored):
    from pydicom.dataset import Dataset

    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 10]
    table = (1023 * (np.arange(4096) / 4095) ** 2).astype(np.uint16)
    lut.LUTData = table.tobytes()
    path = write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[lut], WindowCenter=10, WindowWidth=5)
    np.testing.assert_allclose(images.read_image(path)[..., 0], table[stored] / 511.5 - 1, atol=1e-6)


def test_dicom_signed(tmp_path, stored):
    signed = stored.astype(np.int16) - 2048
    path = write_dicom(tmp_path / "a.dcm", signed)
    np.testing.assert_allclose(images.read_image(path)[..., 0], stored / 2047.5 - 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black(tmp_path, stored, kind):
    stored = stored.copy()
    stored[:, :5] = 4000
    path = write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation=kind, PixelPaddingValue=4000)
    image = images.read_image(path)[..., 0]
    assert (image[:, :5] == -1).all()
    assert (image[5:15, 5:] > -1).all()


def test_dicom_colour(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", colour(), bits_stored=8)
    np.testing.assert_allclose(images.read_image(path), colour() / 127.5 - 1, atol=1e-6)
    assert images.read_image(path, channels=1).shape == (24, 31, 1)


def test_dicom_that_cannot_be_used(tmp_path, stored):
    frames = write_dicom(tmp_path / "frames.dcm", np.concatenate([stored, stored]), Rows=24, NumberOfFrames=2)
    blind = write_dicom(tmp_path / "blind.dcm", stored, PixelData=None)
    short = write_dicom(tmp_path / "short.dcm", stored, PixelData=stored.tobytes()[:100])
    huge = write_dicom(tmp_path / "huge.dcm", stored, Columns=images.MAX_SIDE + 1)
    (tmp_path / "words.dcm").write_text("these are words, not pixels" * 20)
    for path, says in [
        (frames, "2 frames"),
        (blind, "without pixels"),
        (short, "cannot be decoded"),
        (huge, "at most"),
        (tmp_path / "words.dcm", "not a readable DICOM"),
    ]:
        with pytest.raises(ImageError, match=says) as caught:
            images.read_image(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch, stored):
    path = write_dicom(tmp_path / "a.dcm", stored)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install r2c-gan\[dicom\]"):
        images.read_image(path)


def test_a_file_says_its_depth_its_checksum_and_its_header(tmp_path, stored):
    save(tmp_path / "eight.png", smooth())
    save(tmp_path / "eight.jpg", smooth())
    for name in ("sixteen.png", "sixteen.tif"):
        cv2.imwrite(str(tmp_path / name), smooth().astype(np.uint16) * 257)
    write_dicom(tmp_path / "shallow.dcm", smooth(), 8)
    write_dicom(tmp_path / "deep.dcm", stored, 12)
    for name, bits in [
        ("eight.png", 8),
        ("eight.jpg", 8),
        ("sixteen.png", 16),
        ("sixteen.tif", 16),
        ("shallow.dcm", 8),
        ("deep.dcm", 16),
    ]:
        file = images.read_file(tmp_path / name, channels=3)
        assert file.bits == bits, name
        assert file.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        np.testing.assert_array_equal(file.pixels, images.read_image(tmp_path / name, 3))
        assert (file.dicom is not None) == name.endswith(".dcm")
    header = images.read_file(tmp_path / "deep.dcm").dicom
    assert header.BitsStored == 12 and "PixelData" not in header


# --- listing ---------------------------------------------------------------------------------------------------------


def test_list_images_sorts_skips_and_survives_a_loop(tmp_path):
    for name in ["b.PNG", "a.jpeg", "c.txt", ".hidden.png", "deep/d.tif", "deep/e.DCM", ".git/f.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path, tmp_path / "deep" / "up")
    assert images.list_images(tmp_path) == [tmp_path / "a.jpeg", tmp_path / "b.PNG"]
    deep = [tmp_path / "deep" / "d.tif", tmp_path / "deep" / "e.DCM"]
    assert images.list_images(tmp_path, recursive=True) == [tmp_path / "a.jpeg", tmp_path / "b.PNG", *deep]


def test_dicom_files_are_known_by_their_contents_too(tmp_path, stored):
    for name in ("1.2.840.113619", "IM0001", "a.dcm"):
        write_dicom(tmp_path / name, stored)
    (tmp_path / "README").write_text("words")
    (tmp_path / "short").write_bytes(b"x")
    found = images.list_images(tmp_path, unnamed_dicom=True)
    assert [path.name for path in found] == ["1.2.840.113619", "IM0001", "a.dcm"]
    assert images.list_images(tmp_path) == [tmp_path / "a.dcm"]
    assert images.read_image(found[0]).shape == (24, 30, 1)
    assert not images.is_dicom(tmp_path / "nowhere")


def test_list_images_follows_a_link_to_another_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "a.png", smooth())
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    assert images.list_images(tmp_path / "data", recursive=True) == [tmp_path / "data" / "linked" / "a.png"]


def test_list_images_names_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        images.list_images(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: not a folder"):
        images.list_images(tmp_path / "file")


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_every_level_survives_the_round_trip(tmp_path, bits):
    levels = np.arange(2**bits).astype(np.uint8 if bits == 8 else np.uint16).reshape(16, -1)
    image = images.from_uint(levels, bits)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(images.to_uint(image, bits), levels)
    images.write_image(tmp_path / "a.png", image, bits)
    np.testing.assert_array_equal(images.to_uint(images.read_image(tmp_path / "a.png"), bits)[..., 0], levels)


def test_writing_rounds_and_clips():
    levels = images.to_uint(np.array([-1.5, -1, -1 + 0.6 / 127.5, -1 + 1.4 / 127.5, 1, 3], np.float32))
    np.testing.assert_array_equal(levels, [0, 0, 1, 1, 255, 255])
    with pytest.raises(ValueError, match="finite"):
        images.to_uint(np.array([np.nan]))
    with pytest.raises(ValueError, match="bits"):
        images.to_uint(np.zeros(2), bits=12)


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_is_written_as_any_reader_expects_it(tmp_path, bits):
    stored = colour().astype(np.uint8 if bits == 8 else np.uint16) * (1 if bits == 8 else 257)
    images.write_image(tmp_path / "a.png", images.from_uint(stored), bits)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], stored)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_gray_files_have_one_channel(tmp_path):
    for image in (np.zeros((4, 5)), np.zeros((4, 5, 1))):
        images.write_image(tmp_path / "a.png", image)
        assert cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).shape == (4, 5)


def test_writing_refuses_other_shapes_suffixes_and_places(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        images.write_image(tmp_path / "a.png", np.zeros((4, 5, 2)))
    with pytest.raises(ValueError, match="png"):
        images.write_image(tmp_path / "a.jpg", np.zeros((4, 5)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        images.write_image(tmp_path / "file" / "a.png", np.zeros((4, 5)))


# --- resizing --------------------------------------------------------------------------------------------------------


def bilinear(image, height, width):
    """Bilinear interpolation with half-pixel centres, written from its definition."""

    def axis(old, new):
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(centre.astype(int), max(old - 2, 0))
        return low, np.minimum(low + 1, old - 1), centre - low

    y0, y1, fy = axis(image.shape[0], height)
    x0, x1, fx = axis(image.shape[1], width)
    rows = image[y0] * (1 - fy)[:, None, None] + image[y1] * fy[:, None, None]
    return rows[:, x0] * (1 - fx)[:, None] + rows[:, x1] * fx[:, None]


@pytest.mark.parametrize("size", [(24, 31), (40, 33), (13, 90), (23, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_bilinear_with_half_pixel_centres(size, channels):
    image = np.random.default_rng(0).uniform(-1, 1, (24, 31, channels)).astype(np.float32)
    result = images.resize(image, *size)
    assert result.dtype == np.float32
    assert result.shape == (*size, channels)
    np.testing.assert_allclose(result, bilinear(image, *size), atol=1e-5)


def test_resize_takes_the_mean_when_shrinking_by_two_or_more():
    image = np.random.default_rng(0).uniform(-1, 1, (24, 30, 1)).astype(np.float32)
    expected = image.reshape(8, 3, 15, 2, 1).mean(axis=(1, 3))
    np.testing.assert_allclose(images.resize(image, 8, 15), expected, atol=1e-6)


def test_resize_chooses_for_each_axis():
    image = np.random.default_rng(0).uniform(-1, 1, (24, 30, 1)).astype(np.float32)
    expected = bilinear(image.reshape(6, 4, 30, 1).mean(axis=1), 6, 50)
    np.testing.assert_allclose(images.resize(image, 6, 50), expected, atol=1e-5)


def test_resize_of_one_pixel_and_a_wrong_shape():
    np.testing.assert_allclose(images.resize(np.full((1, 1, 3), 0.5), 4, 6), np.full((4, 6, 3), 0.5))
    with pytest.raises(ValueError, match="shape"):
        images.resize(np.zeros((4, 5)), 2, 2)


def test_what_cannot_be_read_again_does_not_count_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: np.zeros((4, 5), np.uint8))
    with pytest.raises(ImageError, match=r"a\.png: what was written is not what can be read again"):
        images.write_image(tmp_path / "a.png", np.ones((4, 5, 1)))
    assert list(tmp_path.iterdir()) == []

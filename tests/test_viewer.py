"""The viewer: its parts in numbers, its program's messages, and the page in headless Chromium."""

import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import programs
import pytest
from test_images import write_dicom

from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.restoration.restorer import RestoredImage, Restorer
from r2c_gan.serving.viewer import case, page

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def halving():
    """A restorer that halves an image, and calls bright ones COVID-19."""

    def network(batch):
        covid = (batch.mean((1, 2, 3)) + 1) / 2
        return batch / 2, np.stack([1 - covid, covid], axis=-1).astype("float32")

    return Restorer(network, (16, 16), 1, 4)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_file_is_restored_at_its_own_size_and_depth(tmp_path, bits):
    levels = np.random.default_rng(0).integers(0, 2**bits, (20, 31), f"uint{bits}")
    cv2.imwrite(str(tmp_path / "a.png"), levels)
    opened = case.open_case(halving(), tmp_path / "a.png", 2, 1)
    assert opened.bits == bits
    expected = halving().restore(images.read_image(tmp_path / "a.png", 1, window="auto"), 2)
    np.testing.assert_array_equal(opened.result.image, expected.image)
    decoded = cv2.imdecode(np.frombuffer(case.png(opened.result.image, opened.bits), "uint8"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, images.to_uint(expected.image, bits)[..., 0])


def test_too_many_pixels_and_broken_files_are_refused_without_the_folder(tmp_path):
    images.write_image(tmp_path / "big.png", np.zeros((40, 50)))
    (tmp_path / "broken.png").write_bytes((tmp_path / "big.png").read_bytes()[:60])
    for name, limit, message in (("big.png", 0.0019, "50 x 40 pixels; at most"), ("broken.png", 1, "broken.png: ")):
        with pytest.raises(UserError, match=message) as caught:
            case.open_case(halving(), tmp_path / name, 1, limit)
        assert str(caught.value).startswith(name)
    assert case.open_case(halving(), tmp_path / "big.png", 1, 0.002).poor.shape == (40, 50, 1)


def test_what_may_be_no_chest_radiograph_is_refused_or_warned_of(tmp_path):
    write_dicom(tmp_path / "ct.dcm", np.arange(108, dtype=np.uint16).reshape(9, 12) * 37, Modality="CT")
    with pytest.raises(UserError, match=r"^ct\.dcm: by its header no chest radiograph: its Modality is CT.*--force"):
        case.open_case(halving(), tmp_path / "ct.dcm", 1, 1)
    assert case.open_case(halving(), tmp_path / "ct.dcm", 1, 1, force=True).warning is None
    images.write_image(tmp_path / "blank.png", np.zeros((30, 40)))
    opened = case.open_case(halving(), tmp_path / "blank.png", 1, 1)
    assert "Do not trust this result: blank: all pixels have one value" in page.result_html(opened, 1.0, 1)


def test_the_difference_is_signed_in_percent_of_the_gray_range():
    poor = np.zeros((4, 5, 1), "float32")
    restored = poor.copy()
    restored[0, 0], restored[1, 1] = 0.5, -1
    difference = case.change(case.Case(poor, RestoredImage(restored, np.zeros(2), np.zeros(2)), 8))
    assert (difference[0, 0, 0], difference[1, 1, 0], difference[2, 2, 0]) == (25, -50, 0)
    words = case.in_words(difference)
    assert "largest 50.0%" in words and "10% of the pixels" in words and "is 3.8% of" in words
    pixels = cv2.imdecode(np.frombuffer(case.difference_map(difference, 50), "uint8"), cv2.IMREAD_COLOR).astype(int)
    (lighter, darker, same) = pixels[0, 0], pixels[1, 1], pixels[2, 2]  # blue, green, red
    assert lighter[2] > lighter[0] and darker[0] > darker[2] and same.max() < 40


@pytest.mark.parametrize(("largest", "scale"), [(0, 1), (1.5, 2), (4, 5), (51, 100), (100, 100)])
def test_the_scale_holds_what_was_changed(largest, scale):
    assert case.scale_of(np.full((3, 3, 1), -largest)) == scale


def test_the_display_is_shrunk_and_keeps_its_shape():
    assert case.display(np.zeros((3000, 4000, 1))).shape == (768, 1024, 1)
    assert case.display(np.zeros((30, 40, 3))).shape == (30, 40, 3)


def test_probabilities_and_the_changed_label_are_said():
    image = np.zeros((2, 2, 1))
    text = page.probabilities_html(RestoredImage(image, np.array([0.75, 0.25]), np.array([0.125, 0.875])))
    assert re.findall(r"\d\.\d{3}", text) == ["0.750", "0.125", "0.250", "0.875"]
    assert "control → COVID-19" in text
    same = RestoredImage(image, np.array([0.75, 0.25]), np.array([0.6, 0.4]))
    assert "→" not in page.probabilities_html(same)


def test_what_a_file_is_called_cannot_become_markup():
    assert "<img" not in page.error_html("<img src=x>.png: broken")


def program(*arguments, code=None, **environment):
    start = ["-m", "r2c_gan.cli.view"] if code is None else ["-c", code]
    return subprocess.Popen(
        programs.python(*start, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_without_gradio_the_extra_is_named():
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'gradio' else find(name, *rest)\n"
        "from r2c_gan.cli import view; sys.argv = ['view', '--model=x']; view.console()"
    )
    process = program(code=code)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert output == "error: the viewer needs Gradio: pip install 'r2c-gan[view]'\n"


# --- The page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run folder with an untrained network."""
    from r2c_gan.models import checkpoints
    from r2c_gan.models.model import R2CGAN

    folder = tmp_path_factory.mktemp("view") / "untrained"
    network = R2CGAN(q=2, filters=4, channels=1, image_size=32, pool_size=2)
    network.compile()
    checkpoints.write_config(folder, network.config)
    checkpoints.save_checkpoint(folder, network, 3, 12)
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """The program's address and its temporary folder; it is ended by SIGTERM, and must leave nothing."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    temporary = tmp_path_factory.mktemp("tmp")
    killed = temporary / "r2c-gan-view-0123abcd"  # what one that was killed left
    killed.mkdir()
    (killed / ".r2c_gan.lock").touch()
    (killed / "film.png").touch()
    process = program(
        f"--model={model}", "--port=0", "--max_upload_mb=1", "--max_megapixels=0.1", TMPDIR=str(temporary)
    )
    lines, deadline = [], time.monotonic() + 180
    while not (lines and lines[-1].startswith("http://")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail("the viewer did not start: " + "".join(lines) + process.stdout.read())
        if select.select([process.stdout], [], [], 1)[0]:
            lines.append(process.stdout.readline())
    assert not killed.exists() and len(list(temporary.iterdir())) == 1
    yield lines[-1].split()[0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []


def test_a_taken_port_is_named(server):
    process = program("--model=nowhere", f"--port={urlsplit(server).port}")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert re.match(r"error: --host=127.0.0.1 --port=\d+: cannot listen there", output)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-component-update"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser, server):
    """A page that must leave no console error and ask nothing of another machine."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(60_000)
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.expected_errors = []

    def excuse(response):  # a small upload can be through before Gradio's page asks how far it is
        if response.status == 404 and "/upload_progress?" in response.url:
            tab.expected_errors += ["404 (Not Found)", "Response"]

    tab.on("response", excuse)
    tab.goto(server)
    tab.wait_for_selector("text=Research only, not for diagnosis")
    yield tab
    tab.close()
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert [text for text in errors if not any(part in text for part in tab.expected_errors)] == []


def upload(tab, path):
    if tab.locator('[aria-label="Clear"], [aria-label="Remove this file"]').count():
        tab.locator('[aria-label="Clear"], [aria-label="Remove this file"]').first.click()
    tab.locator("input[type=file]").first.set_input_files(str(path))


def decoded_source(tab, selector):
    import base64

    text = tab.locator(selector).get_attribute("src").partition("base64,")[2]
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), "uint8"), cv2.IMREAD_UNCHANGED)


def check_result(tab, model, path, passes, bits):
    image = images.read_image(path, window="auto", channels=1)
    expected = Restorer.load(model).restore(image, passes)
    tab.wait_for_selector(f"text={image.shape[1]} x {image.shape[0]} pixels, {bits} bit; {passes} pass")
    shown = decoded_source(tab, ".pair .restored").astype(int)
    assert np.abs(shown - images.to_uint(expected.image)[..., 0]).max() <= 1  # two processes, float32
    np.testing.assert_array_equal(decoded_source(tab, ".pair .poor"), images.to_uint(image)[..., 0])
    for selector in (".pair", ".difference .stage > img"):
        box = tab.locator(selector).bounding_box()
        assert box["width"] / box["height"] == pytest.approx(image.shape[1] / image.shape[0], rel=0.01)
    for column, values in (("before", expected.before), ("after", expected.after)):
        shown = [float(text) for text in tab.locator(f"td.{column}").all_inner_texts()]
        np.testing.assert_allclose(shown, values, atol=0.00051)
    with tab.expect_download() as waiting:
        tab.locator("#download").click()
    assert waiting.value.suggested_filename == f"{path.stem}_restored.png"
    saved = cv2.imread(waiting.value.path(), cv2.IMREAD_UNCHANGED)
    assert saved.dtype == f"uint{bits}"
    assert np.abs(saved / (2**bits - 1) - (expected.image[..., 0] + 1) / 2).max() < 1e-4 + 0.51 / (2**bits - 1)


@pytest.mark.browser
def test_a_png_is_restored_in_two_passes_compared_and_downloaded(tab, model):
    path = page.HERE / "examples" / "noise.png"
    upload(tab, path)
    check_result(tab, model, path, 1, 8)
    tab.get_by_label("2", exact=True).check()
    check_result(tab, model, path, 2, 8)
    slider = tab.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    assert tab.locator(".compare").evaluate("box => box.style.getPropertyValue('--edge')") == "0%"
    assert all(tab.locator("#result img").evaluate_all("all => all.map(image => image.alt.length > 10)"))


@pytest.mark.browser
def test_a_dicom_file_is_restored_with_16_bits(tab, model, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    levels = np.random.default_rng(0).integers(0, 4096, (60, 50), "uint16")
    pydicom.pixels.set_pixel_data(dataset, levels, "MONOCHROME2", 12)
    path = tmp_path / "image.dcm"
    dataset.save_as(path, enforce_file_format=True)
    upload(tab, path)
    check_result(tab, model, path, 1, 16)


@pytest.mark.browser
def test_unusable_files_are_refused_and_the_page_goes_on(tab, model, tmp_path):
    tab.expected_errors = ["413"]
    (tmp_path / "broken.png").write_bytes(b"no image")
    upload(tab, tmp_path / "broken.png")
    tab.wait_for_selector(".wrong >> text=broken.png: not a PNG, JPEG, TIFF or DICOM image")
    images.write_image(tmp_path / "wide.png", np.zeros((300, 400)))
    upload(tab, tmp_path / "wide.png")
    tab.wait_for_selector(".wrong >> text=wide.png: 400 x 300 pixels; at most 0.1 megapixels")
    (tmp_path / "heavy.png").write_bytes(bytes(1_100_000))
    upload(tab, tmp_path / "heavy.png")
    tab.wait_for_selector("text=/maximum allowed size|exceed/i")
    tab.get_by_role("button", name="Phantom: noise, veil").click()
    check_result(tab, model, page.HERE / "examples" / "noise.png", 1, 8)


@pytest.mark.browser
def test_two_people_with_files_of_one_name_get_their_own(browser, server, model, tmp_path):
    """Both restore before either downloads; and nobody else's result can be asked for by its name."""
    tabs, links = [], []
    for number, person in enumerate("ab"):
        path = tmp_path / person / "film.png"
        path.parent.mkdir()
        images.write_image(path, np.random.default_rng(number).uniform(-1, 1, (40, 50)))
        tab = browser.new_page()
        tabs.append((tab, path))
        tab.set_default_timeout(60_000)
        tab.goto(server)
        tab.wait_for_selector("text=Research only, not for diagnosis")
        upload(tab, path)
        tab.wait_for_selector("text=50 x 40 pixels, 8 bit")
    for tab, path in tabs:
        with tab.expect_download() as waiting:
            tab.locator("#download").click()
        links.append(waiting.value.url)
        saved = cv2.imread(waiting.value.path(), cv2.IMREAD_UNCHANGED)
        expected = Restorer.load(model).restore(images.read_image(path, 1), 1).image
        assert np.abs(saved / 255.0 - (expected[..., 0] + 1) / 2).max() < 1e-4 + 0.51 / 255
    folders = [link.rsplit("/", 2)[1] for link in links]
    assert len(set(folders)) == 2 and min(map(len, folders)) >= 43  # 256 random bits
    tab, _ = tabs[0]
    old = links[0]
    assert tab.request.get(old).status == 200
    tab.get_by_label("2", exact=True).check()
    tab.wait_for_selector("text=8 bit; 2 passes")
    assert tab.request.get(old).status != 200  # it went with its result
    assert tab.request.get(links[1]).status == 200
    for tab, _ in tabs:
        tab.close()


@pytest.mark.browser
def test_a_phone_shows_all_without_scrolling_sideways(tab):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.get_by_role("button", name="Phantom: noise, veil").click()
    tab.wait_for_selector(".pair .restored")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator(".pair").bounding_box()["width"] > 250

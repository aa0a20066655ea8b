"""The readers' page in headless Chromium, opened from a file: simulated readers at the keyboard and at the mouse."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import programs
import pytest

from experiments.reader_study import answers, measures
from experiments.reader_study.design import SIDES, other
from experiments.reader_study.pairs import Pair
from experiments.reader_study.study import write_study
from r2c_gan.data import images

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CASES, REPEATS = 4, 1
PAIRS = CASES + REPEATS


def make_study(folder, **changes):
    """A study of flat images: the original of case k has the level 60 + k, the restored one 160 + k."""
    pairs = []
    for index in range(CASES):
        for kind, level in (("originals", 60 + index), ("restored", 160 + index)):
            images.write_image(folder / kind / f"{index}.png", images.from_uint(np.full((40, 32), level, "uint8")))
        label = ("control", "covid")[index % 2]
        pairs.append(
            Pair(
                str(index),
                folder / "originals" / f"{index}.png",
                folder / "restored" / f"{index}.png",
                label,
                str(index),
            )
        )
    settings = {"repeats": REPEATS, "seed": 0, "title": "Lungs", "max_side": 64, "allow_no_preference": False}
    return write_study(folder / "study", pairs, **{**settings, **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader_study")
    make_study(folder)
    return folder / "study"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        yield driver.chromium


class Reading:
    """A browser profile with the study in one or more tabs, which must ask for nothing but its files.

    The profile lies on the disk, as a reader's does.
    """

    FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")

    def __init__(self, browser, study, size=(1280, 800)):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.context = browser.launch_persistent_context(
            self.profile.name,
            executable_path=CHROMIUM,
            args=[*self.FLAGS, "--disable-component-update"],
            viewport={"width": size[0], "height": size[1]},
        )
        self.context.set_default_timeout(20_000)
        self.address = (study / "for_readers" / "index.html").as_uri()
        self.key = answers.read_key(study / "key.json")
        self.asked, self.errors, self.expected_errors = [], [], []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))

    def tab(self, script=None):
        """A new tab with the page.

        One in about a hundred tabs that Chromium opens from a file on a busy machine finds the storage of the others
        empty for as long as it lives, whatever the page does; such a tab is closed again.
        """
        stored = "localStorage.length"
        kept = self.context.pages[-1].evaluate(stored) if self.address in self.context.pages[-1].url else 0
        while True:
            tab = self.context.new_page()
            if script:
                tab.add_init_script(script)
            tab.goto(self.address)
            if tab.evaluate(stored) >= kept:
                return tab
            tab.close()

    def open(self, reader=None):
        tab = self.tab()
        if reader:
            tab.get_by_role("checkbox").check()
            tab.get_by_label("Your code name").fill(reader)
            tab.keyboard.press("Enter")
            self.ready(tab)
        return tab

    def ready(self, tab):
        """Waits until the images of the step are drawn and can be answered; gives (place, step, presentation)."""
        tab.wait_for_selector("#reading[aria-busy=false]")
        place = int(re.search(r"Pair (\d+) of", tab.locator("#place").inner_text())[1]) - 1
        return place, tab.locator("#reading").get_attribute("data-step"), self.key["presentations"][place]

    def close(self):
        self.context.close()
        self.profile.cleanup()
        folder = self.address.rpartition("/")[0]
        outside = [url for url in self.asked if not url.startswith((folder, "blob:", "data:"))]
        assert outside == []
        assert [text for text in self.errors if not any(part in text for part in self.expected_errors)] == []


@pytest.fixture
def reading(browser, study):
    opened = Reading(browser, study)
    yield opened
    opened.close()


def plan(key, seed):
    """What a simulated reader answers to each pair: mostly the restored image, better rated."""
    rng = np.random.default_rng(seed)
    given = []
    for shown in key["presentations"]:
        restored = shown["restored_side"]
        rating = {restored: int(rng.integers(3, 6)), other(SIDES, restored): int(rng.integers(1, 4))}
        preferred = restored if rng.random() < 0.75 else other(SIDES, restored)
        given.append({"covid": bool(rng.integers(2)), "preferred": preferred, "rating": rating})
    return given


def by_keyboard(reading, tab, wanted):
    reading.ready(tab)
    tab.keyboard.press("y" if wanted["covid"] else "n")
    tab.keyboard.press("Enter")
    assert reading.ready(tab)[1] == "pair"
    tab.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[wanted["preferred"]])
    for side in SIDES:  # the mark moves on from left to right
        tab.keyboard.press(str(wanted["rating"][side]))
    tab.keyboard.press("Enter")


def by_mouse(reading, tab, wanted):
    reading.ready(tab)
    tab.get_by_role("button", name="Yes" if wanted["covid"] else "No", exact=False).filter(visible=True).first.click()
    tab.locator("#next").click()
    assert reading.ready(tab)[1] == "pair"
    for side in reversed(SIDES):
        tab.locator(f"[data-field=rating_{side}] button").nth(wanted["rating"][side] - 1).click()
    tab.locator(f"[data-field=preferred] [data-value={wanted['preferred']}]").click()
    tab.locator("#next").click()


def save(tab, folder):
    with tab.expect_download() as waiting:
        tab.get_by_role("button", name="Save answers").filter(visible=True).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def check(path, key, reader, wanted):
    """The file says what the reader did, by the strict reading of the analysis."""
    readers, _ = answers.read_answers([path], key)
    given = readers[reader]
    for shown, plan in zip(key["presentations"], wanted, strict=False):
        answer = given[shown["id"]]
        assert (answer["covid"], answer["preferred"]) == (plan["covid"], plan["preferred"])
        assert {side: answer[f"rating_{side}"] for side in SIDES} == plan["rating"]
    assert len(given) == len(wanted)


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_two_readers_read_reload_and_are_analysed(reading, study, tmp_path):
    """One at the keyboard, with a reload in either step; one at the mouse. The analysis gives back what they did."""
    folder = tmp_path / "answers"
    folder.mkdir()
    expected = []
    for reader, way in (("Reader-1", by_keyboard), ("reader-2", by_mouse)):
        wanted = plan(reading.key, seed=len(expected))
        tab = reading.open(reader)
        for place in range(PAIRS):
            if place == 2:
                tab.reload()
            if place == 3 and way is by_keyboard:
                reading.ready(tab)
                tab.keyboard.press("y" if wanted[place]["covid"] else "n")
                tab.keyboard.press("Enter")
                reading.ready(tab)
                tab.keyboard.press("ArrowLeft")
                tab.reload()
                assert reading.ready(tab)[:2] == (3, "pair")  # the diagnosis stays given
                chosen = tab.locator("[data-field=preferred] [aria-pressed=true]")
                assert chosen.get_attribute("data-value") == "left"
                tab.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[wanted[place]["preferred"]])
                for side in SIDES:
                    tab.keyboard.press(str(wanted[place]["rating"][side]))
                tab.keyboard.press("Enter")
            else:
                way(reading, tab, wanted[place])
        tab.wait_for_selector("#end:not([hidden])")
        path = save(tab, folder)
        assert path.name == f"answers_{reading.key['study']}_{reader.lower()}.json"
        assert f"Saved as {path.name}: {PAIRS} of {PAIRS} pairs" in tab.locator("#saved").inner_text()
        check(path, reading.key, reader.lower(), wanted)
        expected.append(wanted)
        tab.close()
    command = programs.python("-m", "experiments.reader_study.analyse", "--key", study / "key.json")
    command += ["--answers", folder, "--output_dir", tmp_path / "out", "--bootstrap", "200"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    shown = reading.key["presentations"]
    chosen = [
        given["preferred"] == each["restored_side"]
        for wanted in expected
        for each, given in zip(shown, wanted, strict=True)
        if not each["repeat"]
    ]
    assert (result["readers"], result["cases"], result["answers"]) == (2, CASES, 2 * CASES)
    assert result["preference"]["restored"]["successes"] == sum(chosen)
    assert result["repeated_answers"] == 2 and 0 < result["seconds"] < 60
    # Consecutive code names diagnose from opposite images, so that each case is diagnosed from both.
    readers, _ = answers.read_answers(answers.find_files([folder]), reading.key)
    rows = answers.unblind(readers, reading.key)
    by_case = {(row["case"], row["diagnosed"]) for row in rows if not row["repeat"]}
    assert len(by_case) == 2 * CASES
    assert measures.analyse(rows, n=200)["diagnosis"] == result_diagnosis(result)


def result_diagnosis(result):
    """JSON has lists where the analysis has tuples."""
    return json.loads(
        json.dumps(result["diagnosis"]),
        object_hook=lambda each: {k: tuple(v) if isinstance(v, list) else v for k, v in each.items()},
    )


def test_two_tabs_lose_and_double_nothing(reading, tmp_path):
    wanted = plan(reading.key, seed=5)
    one = reading.open("pair-of-tabs")
    two = reading.open("pair-of-tabs")
    for place in range(PAIRS):
        active, passive = (one, two) if place % 2 else (two, one)
        by_keyboard(reading, active, wanted[place])
        if place < PAIRS - 1:  # the other tab follows by itself
            passive.wait_for_selector(f"#place:has-text('Pair {place + 2} of')")
            assert "Answered in another window" in passive.locator("#status").inner_text()
    for tab in (one, two):
        tab.wait_for_selector("#end:not([hidden])")
    check(save(one, tmp_path), reading.key, "pair-of-tabs", wanted)
    first = json.loads(save(one, tmp_path).read_text())["answers"]
    assert json.loads(save(two, tmp_path).read_text())["answers"] == first


def test_a_tab_that_did_not_hear_of_the_other_overwrites_nothing(reading, tmp_path):
    wanted = plan(reading.key, seed=6)
    deaf = reading.tab("addEventListener('storage', event => event.stopImmediatePropagation(), true)")
    deaf.get_by_role("checkbox").check()
    deaf.get_by_label("Your code name").fill("r1")
    deaf.keyboard.press("Enter")
    reading.ready(deaf)
    for key in ("y", "Enter"):
        deaf.keyboard.press(key)
    assert reading.ready(deaf)[:2] == (0, "pair")
    for key in ("ArrowRight", "5", "1"):
        deaf.keyboard.press(key)
    tab = reading.open("r1")
    assert reading.ready(tab)[:2] == (0, "pair")
    for key in ("ArrowLeft", "2", "ArrowDown", "4", "Enter"):
        tab.keyboard.press(key)
    for key in ("y", "Enter"):
        assert reading.ready(tab)[:2] == (1, "diagnosis")
        tab.keyboard.press(key)
    assert reading.ready(tab)[:2] == (1, "pair")
    deaf.wait_for_function("Object.values(localStorage).some((text) => text.includes('answered'))")
    assert reading.ready(deaf)[0] == 0  # it still shows the pair that is answered
    deaf.keyboard.press("ArrowRight")
    assert reading.ready(deaf)[:2] == (1, "pair")
    assert "Answered in another window" in deaf.locator("#status").inner_text()
    assert (
        deaf.locator("[data-field][data-step=pair] [aria-pressed=true]").count() == 0
    )  # what was meant for another pair counts for nothing
    path = save(tab, tmp_path)
    wanted = [{"covid": True, "preferred": "left", "rating": {"left": 2, "right": 4}}]
    check(path, reading.key, "r1", wanted)


def test_the_diagnosis_is_from_one_image_alone_and_final_once_both_are_seen(reading):
    tab = reading.open("reader-1")
    group = sum(map(ord, "reader-1")) % 2
    _, step, shown = reading.ready(tab)
    side = other(SIDES, shown["diagnosed_side"]) if group else shown["diagnosed_side"]
    assert step == "diagnosis"
    sources = [image.get_attribute("src") for image in tab.locator("figure img").all()]
    assert [source for source in sources if source] == [shown[side]]
    assert tab.locator("figure").filter(visible=True).locator("figcaption").inner_text() == "One image alone"
    tab.keyboard.press("Enter")
    assert "Still to answer: the question for COVID-19" in tab.locator("#status").inner_text()
    for key in ("y", "n", "Enter"):
        tab.keyboard.press(key)
    assert reading.ready(tab)[1] == "pair"
    assert [image.get_attribute("src") for image in tab.locator("figure img").all()] == [shown["left"], shown["right"]]
    tab.keyboard.press("y")
    stored = tab.evaluate("Object.entries(localStorage).filter(([key]) => !key.endsWith('consent'))")
    assert len(stored) == 1 and json.loads(stored[0][1])["covid"] is False
    tab.keyboard.press("Enter")
    status = tab.locator("#status").inner_text()
    assert all(part in status for part in ("which image you would rather", "left image", "right image"))


def test_readers_of_one_browser_are_apart_and_resume_in_a_new_tab(reading):
    wanted = plan(reading.key, seed=1)
    tab = reading.open("anna")
    by_keyboard(reading, tab, wanted[0])
    reading.ready(tab)
    tab.close()
    assert reading.ready(reading.open("berta"))[0] == 0
    assert reading.ready(reading.open("ANNA"))[0] == 1


def test_nobody_starts_without_consent_or_a_code_name(reading):
    tab = reading.open()
    assert "Research only, not for diagnosis" in tab.locator("#welcome").inner_text()
    start = tab.get_by_role("button", name="Start")
    start.click()
    tab.get_by_label("Your code name").fill("r1")
    start.click()
    assert tab.locator("#reading").is_hidden() and tab.evaluate("localStorage.length") == 0
    tab.get_by_role("checkbox").check()
    tab.get_by_label("Your code name").fill("a name & more")
    start.click()
    assert tab.locator("#reading").is_hidden()


def test_no_preference_where_it_is_offered(browser, tmp_path):
    make_study(tmp_path, allow_no_preference=True)
    reading = Reading(browser, tmp_path / "study")
    tab = reading.open("r1")
    for key in ("y", "Enter"):
        tab.keyboard.press(key)
    reading.ready(tab)
    for key in ("n", "3", "3", "Enter"):
        tab.keyboard.press(key)
    assert reading.ready(tab)[0] == 1
    readers, _ = answers.read_answers([save(tab, tmp_path)], reading.key)
    assert [answer["preferred"] for answer in readers["r1"].values()] == ["none"]
    reading.close()


# --- The images -------------------------------------------------------------------------------------------------------


def levels(tab):
    """The gray level in the middle of each image, as the screen shows it."""
    picture = cv2.imdecode(np.frombuffer(tab.screenshot(), "uint8"), cv2.IMREAD_COLOR)
    found = []
    for port in tab.locator(".port").filter(visible=True).all():
        box = port.bounding_box()
        found.append(picture[int(box["y"] + box["height"] / 2), int(box["x"] + box["width"] / 2)].tolist())
    return found


def to_pair(reading, reader="reader-1"):
    tab = reading.open(reader)
    for key in ("n", "Enter"):
        tab.keyboard.press(key)
    return tab, reading.ready(tab)[2]


def test_window_and_level_act_on_both_images_by_the_formula(reading):
    tab, shown = to_pair(reading)
    original = 60 + shown["case"]
    true = [original + 100 * (side == shown["restored_side"]) for side in SIDES]
    assert levels(tab) == [[level] * 3 for level in true]  # what is on the side that the key says, unchanged

    def expected(window, level):
        gray = [((value / 255 - level / 100) * 100 / window + 0.5) * 255 for value in true]
        return [[pytest.approx(min(255, max(0, value)), abs=1.5)] * 3 for value in gray]

    for key in "ccccbb":
        tab.keyboard.press(key)
    assert levels(tab) == expected(80, 40)
    tab.locator("#window").focus()
    tab.keyboard.press("ArrowRight")  # a slider keeps its arrows: no preference is set
    assert levels(tab) == expected(81, 40)
    assert tab.locator("[data-field=preferred] [aria-pressed=true]").count() == 0
    box = tab.locator(".port").nth(1).bounding_box()
    tab.mouse.move(box["x"] + 200, box["y"] + 200)
    tab.mouse.down(button="right")
    tab.mouse.move(box["x"] + 120, box["y"] + 160)
    tab.mouse.up(button="right")
    assert (tab.locator("#window").input_value(), tab.locator("#level").input_value()) == ("101", "30")
    tab.keyboard.press("0")
    assert levels(tab) == [[level] * 3 for level in true]


def test_zoom_and_position_are_those_of_both_images_and_hold_the_pointer(reading):
    tab, _ = to_pair(reading)
    images = tab.locator("figure img")
    box = tab.locator(".port").first.bounding_box()
    point = (box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])

    def transforms():
        return images.evaluate_all("all => all.map(image => image.style.transform)")

    def under_the_pointer():
        """Where in the image the pointer is, as a fraction of it."""
        drawn = images.first.bounding_box()
        return (point[0] - drawn["x"]) / drawn["width"], (point[1] - drawn["y"]) / drawn["height"]

    before = under_the_pointer()
    tab.mouse.move(*point)
    tab.mouse.wheel(0, -200)
    tab.wait_for_selector("#zoom:not(:text-is('100%'))")
    first, second = transforms()
    assert first == second and "scale(1.49" in first
    assert under_the_pointer() == pytest.approx(before, abs=0.005)
    tab.mouse.down()
    tab.mouse.move(point[0] + 30, point[1] - 20)
    tab.mouse.up()
    moved = under_the_pointer()
    drawn = images.first.bounding_box()
    assert (before[0] - moved[0]) * drawn["width"] == pytest.approx(30, abs=1)
    assert (before[1] - moved[1]) * drawn["height"] == pytest.approx(-20, abs=1)
    tab.keyboard.press("Shift+ArrowRight")
    assert transforms()[0] == transforms()[1] != first
    for _ in range(30):
        tab.keyboard.press("+")
    assert tab.locator("#zoom").inner_text() == "1200%"
    for _ in range(30):
        tab.keyboard.press("Shift+ArrowLeft")  # the edge stops at the edge
    drawn = images.first.bounding_box()
    assert drawn["x"] <= box["x"] + 0.5
    tab.mouse.dblclick(*point)
    assert transforms() == ["translate(0%, 0%) scale(1)"] * 2
    tab.keyboard.press("+")
    for key in ("ArrowLeft", "3", "3", "Enter"):
        tab.keyboard.press(key)
    reading.ready(tab)
    assert tab.locator("#zoom").inner_text() == "100%"  # every step begins alike


def test_zooming_in_shows_the_pixels_of_a_large_image(browser, tmp_path):
    """Columns of one pixel, merged at the size of the window, come apart; with a window set, too."""
    columns = np.tile(np.array([40, 200], "uint8"), (1600, 800))
    pairs = []
    for index, label in enumerate(("control", "covid")):
        path = tmp_path / f"{index}.png"
        images.write_image(path, images.from_uint(columns))
        pairs.append(Pair(str(index), path, path, label, str(index)))
    settings = {"repeats": 0, "seed": 0, "title": "Lungs", "max_side": 2048, "allow_no_preference": False}
    write_study(tmp_path / "study", pairs, **settings)
    reading = Reading(browser, tmp_path / "study")
    tab, _ = to_pair(reading)

    def spread():
        picture = cv2.imdecode(np.frombuffer(tab.screenshot(), "uint8"), cv2.IMREAD_GRAYSCALE)
        box = tab.locator(".port").first.bounding_box()
        row = picture[int(box["y"] + box["height"] / 2), int(box["x"] + 250) : int(box["x"] + 350)]
        return int(row.max()) - int(row.min())

    assert spread() < 80
    for _ in range(14):
        tab.keyboard.press("+")
    apart = spread()
    assert apart > 130
    tab.keyboard.press("v")
    assert spread() == pytest.approx(apart / 1.05, abs=2)
    reading.close()


def test_a_missing_image_is_said_and_cannot_be_judged(browser, tmp_path):
    key = make_study(tmp_path)
    folder = tmp_path / "study" / "for_readers"
    for side in SIDES:
        (folder / key["presentations"][0][side]).unlink()
    reading = Reading(browser, tmp_path / "study")
    reading.expected_errors = ["ERR_FILE_NOT_FOUND"]
    tab = reading.context.new_page()
    tab.goto(reading.address)
    tab.get_by_role("checkbox").check()
    tab.get_by_label("Your code name").fill("r1")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("text=An image of this pair cannot be loaded")
    for pressed in ("y", "Enter"):
        tab.keyboard.press(pressed)
    assert tab.locator("#reading").get_attribute("data-step") == "diagnosis"
    assert tab.locator("[aria-pressed=true]").count() == 0
    reading.close()


# --- The page ---------------------------------------------------------------------------------------------------------


def test_a_browser_that_keeps_nothing_says_so_and_still_saves(reading, tmp_path):
    tab = reading.context.new_page()
    tab.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })")
    tab.goto(reading.address)
    tab.get_by_role("checkbox").check()
    tab.get_by_label("Your code name").fill("r1")
    tab.keyboard.press("Enter")
    reading.ready(tab)
    assert "This browser keeps nothing: save your answers" in tab.locator("#status").inner_text()
    wanted = plan(reading.key, seed=2)
    for place in range(2):
        by_keyboard(reading, tab, wanted[place])
    reading.ready(tab)
    check(save(tab, tmp_path), reading.key, "r1", wanted[:2])


@pytest.mark.parametrize("size", [(1440, 900), (1024, 768), (1000, 560)])
def test_all_is_on_the_screen_without_scrolling(browser, tmp_path, size):
    make_study(tmp_path, allow_no_preference=True, title="A reader study with a title of many words in it")
    reading = Reading(browser, tmp_path / "study", size)
    tab = reading.open("a-reader-of-24-letters-0")
    for step in ("diagnosis", "pair"):
        assert reading.ready(tab)[1] == step
        assert tab.evaluate("document.documentElement.scrollHeight <= innerHeight && scrollX === 0")
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        boxes = (
            tab.locator("#reading :is(button, input, h2, output)")
            .filter(visible=True)
            .evaluate_all(
                "all => all.map(part => { const box = part.getBoundingClientRect();"
                " return [box.left, box.top, -box.right, -box.bottom]; })"
            )
        )
        outermost = np.min(boxes, axis=0)
        assert len(boxes) > 10 and (outermost >= [0, 0, -size[0], -size[1]]).all(), outermost
        ports = [port.bounding_box() for port in tab.locator(".port").filter(visible=True).all()]
        assert all(port["height"] > 0.6 * size[1] for port in ports) and len(ports) == 1 + (step == "pair")
        tab.keyboard.press("y")
        tab.keyboard.press("Enter")
    reading.close()


def test_a_phone_is_asked_for_a_larger_window_and_takes_no_answers(browser, study):
    reading = Reading(browser, study, (390, 844))
    tab = reading.open()
    assert tab.get_by_role("heading", name="A larger window, please").is_visible()
    assert tab.locator("main").filter(visible=True).count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.set_viewport_size({"width": 1280, "height": 800})
    assert tab.locator("#too-small").is_hidden()
    tab.get_by_role("checkbox").check()
    tab.get_by_label("Your code name").fill("r1")
    tab.keyboard.press("Enter")
    reading.ready(tab)
    tab.set_viewport_size({"width": 700, "height": 800})
    for key in ("y", "Enter"):
        tab.keyboard.press(key)
    tab.set_viewport_size({"width": 1280, "height": 800})
    assert reading.ready(tab)[:2] == (0, "diagnosis") and tab.locator("[aria-pressed=true]").count() == 0
    reading.close()


CONTRASTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => numbers(color).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const opaque = (element) => {
    for (; element; element = element.parentElement) {
      const color = numbers(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0.5) return getComputedStyle(element).backgroundColor;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const pair = [light(getComputedStyle(element).color), light(opaque(element))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
}"""


def test_everything_has_a_name_contrast_and_a_visible_focus(reading):
    """WCAG 2.2 AA: text of 4.5 to 1, every control named and reached by Tab, its focus seen."""
    tab = reading.open()

    def check_screen():
        contrasts = tab.evaluate(CONTRASTS)
        assert len(contrasts) > 5 and min(contrasts)[0] >= 4.5, min(contrasts)
        controls = tab.locator("button, input, progress").filter(visible=True)
        names = controls.evaluate_all(
            "all => all.map(part => part.getAttribute('aria-label') || part.innerText ||"
            " [...part.labels].map(label => label.innerText).join())"
        )
        assert all(name.strip() for name in names)
        reached = set()
        tab.evaluate("document.activeElement.blur()")
        for _ in range(controls.count() + 3):
            tab.keyboard.press("Tab")
            outline = tab.evaluate(
                "() => { const at = document.activeElement; if (at === document.body) return null;"
                " const style = getComputedStyle(at);"
                " return [at.id || at.innerText, style.outlineStyle, parseFloat(style.outlineWidth)]; }"
            )
            if outline:
                assert outline[1] == "solid" and outline[2] >= 2, outline
                reached.add(outline[0])
        return reached

    assert {"consent", "reader", "Start", "Keys and mouse"} <= check_screen()
    tab.get_by_role("checkbox").check()
    tab.get_by_label("Your code name").fill("r1")
    tab.keyboard.press("Enter")
    reading.ready(tab)
    assert tab.evaluate("document.activeElement.id") == "ask-covid"  # a screen reader begins with the question
    assert {"window", "level", "reset", "next"} <= check_screen()
    tab.keyboard.press("y")
    tab.keyboard.press("Enter")
    reading.ready(tab)
    images = tab.locator("figure img").evaluate_all("all => all.map(image => image.alt)")
    assert images == ["Chest radiograph, left", "Chest radiograph, right"]
    check_screen()


def test_answers_can_be_given_by_tab_and_space_alone(reading):
    tab = reading.open("r1")
    for name in ("Yes", "Show both images"):
        tab.get_by_role("button", name=name).focus()
        tab.keyboard.press("Space")
    reading.ready(tab)
    for selector in ("preferred] [data-value=right", "rating_right] [data-value='2'", "rating_left] [data-value='5'"):
        tab.locator(f"[data-field={selector}]").focus()
        tab.keyboard.press("Enter")
    tab.locator("#next").focus()
    tab.keyboard.press("Enter")
    assert reading.ready(tab)[0] == 1


def test_help_opens_and_closes_and_holds_the_keys_meanwhile(reading):
    tab = reading.open("r1")
    tab.keyboard.press("?")
    help_dialog = tab.get_by_role("dialog", name="Keys and mouse")
    assert help_dialog.is_visible()
    assert not help_dialog.get_by_text("no preference").is_visible()  # not offered in this study
    tab.keyboard.press("y")
    tab.keyboard.press("Escape")
    assert help_dialog.is_hidden() and tab.locator("[aria-pressed=true]").count() == 0


def test_the_policy_lets_nothing_out(reading):
    """Even a script on the page could not reach another machine."""
    reading.expected_errors = ["Content Security Policy", "Refused to connect"]
    tab = reading.open()
    assert tab.evaluate("fetch('https://192.0.2.1/').then(() => 'sent', () => 'refused')") == "refused"
    assert all(urlsplit(url).scheme == "file" for url in reading.asked)

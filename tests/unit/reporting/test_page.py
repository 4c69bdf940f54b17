"""The report in a browser: it loads by itself, shows every figure, sorts, fits a phone, and can be read in the dark."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from synthetic_results import ATTACK, SOME, made, write_further, write_results

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="Chromium and its driver are not installed (Debian: chromium, chromium-driver)"
)
PHONE = {"width": 375, "height": 740, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A suite's folder with everything that a report can hold."""
    root = tmp_path_factory.mktemp("results") / "toy"
    inputs = write_results(root, SOME, num_prompts=20, num_steps=60)
    inputs, answers = write_further(root, inputs, SOME, num_prompts=20)
    made(root / "report", inputs, SOME, answers, matched_kl=[2, 5])
    return root / "report"


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, report: Path):
    """The page, opened as a double click opens it, in the light and on a wide screen."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    in_the(chromium, "light")
    chromium.get((report / "index.html").as_uri())
    return chromium


def in_the(driver, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def test_it_loads_without_an_error_and_without_a_request(chromium, page, report: Path):
    for kind in ("browser", "performance"):
        chromium.get_log(kind)  # what came before
    chromium.refresh()
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [(report / "index.html").as_uri()]


def test_every_figure_is_seen(page, report: Path):
    page.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    sizes = page.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth, i.alt])")
    files = {kind: {path.stem for path in (report / "figures").glob(f"*.{kind}")} for kind in ("png", "svg")}
    assert files["png"] == files["svg"] and len(sizes) == len(files["png"] - {"frontier_narrow"})
    assert len(sizes) == 19, "with those of checkpoints and temperatures"
    assert all(natural > 400 and shown > 250 and alt for natural, shown, alt in sizes), sizes


def test_the_runs_fit_and_the_switch_shows_the_rest(page):
    """Nothing scrolls at 1280 pixels; with all columns the first one stays under its own heading."""
    wide = """const box = document.querySelector("#runs .wide"); return [box.scrollWidth, box.clientWidth]"""
    scroll, client = page.execute_script(wide)
    assert scroll <= client
    shown = """return [...document.querySelectorAll("#runs thead th")].filter(one => one.offsetWidth).length"""
    before = page.execute_script(shown)
    page.find_element("id", "all-columns").click()
    assert page.execute_script(shown) > before
    lefts = page.execute_script(
        """const box = document.querySelector("#runs .wide"); box.style.width = "400px"; box.scrollLeft = 200;
        return ["thead th", "tbody th"].map(one => box.querySelector(one).getBoundingClientRect().left)"""
    )
    assert (
        lefts[0]
        == lefts[1]
        == page.execute_script("""return document.querySelector("#runs .wide").getBoundingClientRect().left + 1""")
    ), "its border is one pixel wide"


def test_a_phone_gets_the_frontier_with_its_legend_below(page, report: Path):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": 390})
    page.refresh()
    ratio = """const one = document.querySelector("#frontier img"); return one.naturalHeight / one.naturalWidth"""
    assert page.execute_script(ratio) > 1
    fits = """const box = document.querySelector("#frontier .sheet"); return box.scrollWidth <= box.clientWidth"""
    assert page.execute_script(fits)


def test_a_click_on_a_heading_sorts(page):
    heading = page.find_element("xpath", "//section[@id='runs']//button[text()='reward']")
    column = """return [...document.querySelectorAll("#runs tbody tr")].map(row => +row.cells[3].dataset.value)"""
    before = page.execute_script(column)
    assert before != sorted(before), "the suite's own order"
    heading.click()
    assert page.execute_script(column) == sorted(before)
    heading.click()
    assert page.execute_script(column) == sorted(before, reverse=True)
    page.find_element("xpath", "//section[@id='runs']//button[text()='run']").click()
    first = page.find_element("css selector", "#runs tbody th").text
    assert first == "base"


def test_what_is_not_measured_sorts_last(page):
    """The pool is not judged: it stays below both ways."""
    heading = page.find_element("xpath", "//section[@id='answers']//button[text()='step']")
    for _ in range(2):
        heading.click()
        steps = page.execute_script(
            """return [...document.querySelectorAll("#answers table:first-of-type tbody tr")]
            .filter(row => row.cells.length == 9).map(row => row.cells[3].dataset.value)"""
        )
        assert "" in steps and steps == sorted(steps, key=lambda step: step == "")


@pytest.mark.parametrize("width", [320, 375, 768])
def test_nothing_sticks_out_on_a_phone(page, width: int):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": width})
    page.refresh()
    size = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth, innerWidth]")
    assert size == [width, width, width]
    wide = page.execute_script("return [...document.querySelectorAll('.wide')].map(e => getComputedStyle(e).overflowX)")
    assert set(wide) == {"auto"}


def test_dark_and_light(page):
    colour = "return getComputedStyle(document.{}).{}.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    body = "body", "backgroundColor"
    assert min(page.execute_script(colour.format(*body))) > 240
    in_the(page, "dark")
    assert max(page.execute_script(colour.format(*body))) < 40
    assert min(page.execute_script(colour.format("body", "color"))) > 200
    sheet = page.execute_script(colour.format("querySelector('.sheet')", "backgroundColor"))
    assert min(sheet) > 240, "figures are dark on light in both"


def test_what_a_model_wrote_shows_as_text(page):
    assert ATTACK in page.find_element("tag name", "body").text
    assert page.execute_script("return document.scripts.length") == 1, "ours"


def test_links_lead_to_files(page, report: Path):
    """Manifests, relative to the page; the costs page is the workflow's, the rest are places on the page."""
    links = page.execute_script("return [...document.links].map(a => a.getAttribute('href'))")
    manifests = [unquote(link) for link in links if link.endswith("manifest.json")]
    assert len(manifests) > 4 * len(SOME)
    lost = [link for link in manifests if not (report / link).is_file() and link != "../sft/manifest.json"]
    assert lost == []
    places = [link[1:] for link in links if link.startswith("#")]
    assert places and all(page.find_elements("id", place) for place in places)

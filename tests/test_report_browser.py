"""`dcbench report` in headless Chromium: no network, plots that draw, tables that sort, telephones, and the dark."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.html import page
from tests import fixtures_report as fixtures

ROOT = Path(__file__).parents[1]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium is not here (apt-get install chromium chromium-driver)"
)

# for every plot, how many pixels have each line's colour
PIXELS = """
const near = (d, i, c) => d[i + 3] > 200 && c.every((v, k) => Math.abs(d[i + k] - v) < 40);
return [...document.querySelectorAll('.plot')].map((box) => {
  const canvas = box.querySelector('.canvas canvas');
  const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return Chart.getChart(canvas).data.datasets.map((set) => {
    const probe = document.createElement('i');
    probe.style.color = set.borderColor;
    document.body.append(probe);
    const c = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
    let count = 0;
    for (let i = 0; i < d.length; i += 4) count += near(d, i, c);
    return [set.label, count];
  });
});
"""

# the least contrast of text with what is behind it (WCAG), the text, and the luminance of the page
CONTRAST = """
const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
const linear = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (c) => { const [r, g, b] = numbers(c).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (e) => {
  const c = getComputedStyle(e).backgroundColor;
  return (numbers(c)[3] ?? 1) > 0 ? c : behind(e.parentElement);
};
const found = [...document.querySelectorAll('body *')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length)
  .map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)];
  });
return [...found.sort((x, y) => x[0] - y[0])[0], light(getComputedStyle(document.body).backgroundColor)];
"""


class Browser:
    """Chromium without a network, and what it says and asks for."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.command("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.command("Network.emulateNetworkConditions", **offline)

    def command(self, name: str, **parameters: Any) -> None:
        """Send a command of the DevTools protocol."""
        self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page, and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page on a screen of this size; narrow ones are telephones."""
        mobile = width < 500
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        for kind in ("browser", "performance"):
            self._log(kind)  # forget what was before
        self.driver.get(path.as_uri())

    def said(self) -> list[str]:
        """Return what stands in the console."""
        return self._log("browser")

    def requests(self) -> list[str]:
        """Return the addresses that were asked for, but for data within the page."""
        events = [json.loads(text)["message"] for text in self._log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def _log(self, kind: str) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log(kind)]  # type: ignore[no-untyped-call]

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that match."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def show(self, element: WebElement) -> WebElement:
        """Scroll an element into the middle, and return it."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        return element


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")  # which Chromium refuses to be without for others
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")  # the driver is here, whatever the way to the world
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        yield Browser(driver)
        driver.quit()


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    fixtures.write_results(root)
    for iteration in (25, 75):
        cell = root / "cells" / "tesla-digits-ipc1-seed0"
        fixtures.write_snapshot(cell / "snapshots" / f"{iteration:06}.safetensors", iteration)
    return write(root, root / "report.html")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(ROOT / "results", tmp_path_factory.mktemp("page") / "report.html")


def write(results: Path, path: Path) -> Path:
    path.write_text(page(Workspace(results)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["made_up", "committed"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_without_errors_and_every_plot_draws(
    name: str, dark: bool, browser: Browser, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    browser.open(path, dark=dark)
    drawn = browser.run(PIXELS)
    assert len(drawn) == len(browser.all("canvas[role=img]")) >= 3
    check_drawn(drawn, every_line=name == "made_up")
    assert browser.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    assert browser.driver.title == "dcbench report"
    assert browser.said() == []
    assert browser.requests() == [path.as_uri()]


def check_drawn(plots: list[list[tuple[str, int]]], *, every_line: bool) -> None:
    """Check that every plot has pixels of its lines; equal lines hide one another, where they are not made up."""
    for lines in plots:
        assert sum(count for _, count in lines) > 100
        assert not every_line or min(count for _, count in lines) > 10, lines


def test_a_click_sorts_and_so_does_the_keyboard(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    (table,) = [t for t in browser.all("#accuracy ~ .figures .tabled table") if "digits, IPC 1," in heading(t)]
    method, accuracy = table.find_elements(By.CSS_SELECTOR, "thead button")[:2]

    def column(number: int) -> list[str]:
        return [row.find_elements(By.CSS_SELECTOR, "th, td")[number].text for row in rows(table)]

    browser.show(accuracy).click()
    assert column(1) == ["30.0 ± 0.0 [30.0, 30.0] *", "56.0 ± 1.0 [43.3, 68.7] *", "62.0 ± 2.0 [36.6, 87.4] *"]
    accuracy.click()
    assert column(0) == ["tesla", "dm", "random"]
    assert sorted_by(table) == {"convnet": "descending"}
    method.send_keys(Keys.ENTER)
    assert column(0) == ["dm", "random", "tesla"]
    assert sorted_by(table) == {"method": "ascending"}


def test_what_is_empty_stands_last_whichever_way_a_table_is_sorted(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    (table,) = browser.all("#time ~ .figures details table")
    browser.show(table.find_element(By.XPATH, "ancestor::details/summary")).click()
    for _ in range(2):
        browser.show(table.find_element(By.XPATH, ".//thead//button[.='iteration']")).click()
        assert rows(table)[-1].text.startswith("mtt 50 ")  # which was not run


def heading(table: WebElement) -> str:
    return table.find_element(By.XPATH, "ancestor::article//h3").text


def rows(table: WebElement) -> list[WebElement]:
    return table.find_elements(By.CSS_SELECTOR, "tbody tr")


def sorted_by(table: WebElement) -> dict[str, str | None]:
    return {head.text: head.get_attribute("aria-sort") for head in table.find_elements(By.CSS_SELECTOR, "[aria-sort]")}


def plot(browser: Browser, start: str) -> tuple[WebElement, WebElement]:
    """Return the article and the canvas of the first plot whose title starts so."""
    canvas = next(c for c in browser.all("canvas[role=img]") if str(c.get_attribute("aria-label")).startswith(start))
    browser.show(canvas)
    return canvas.find_element(By.XPATH, "ancestor::article"), canvas


def test_a_legend_hides_lines_and_an_axis_becomes_logarithmic(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    article, canvas = plot(browser, "Peak memory")
    (mtt,) = [b for b in article.find_elements(By.CSS_SELECTOR, ".legend button") if b.text == "mtt"]
    for pressed in ("false", "true"):
        browser.show(mtt).click()
        assert mtt.get_attribute("aria-pressed") == pressed
        assert browser.run("return Chart.getChart(arguments[0]).isDatasetVisible(1)", canvas) is (pressed == "true")
    for scale in ("logarithmic", "linear"):
        article.find_element(By.CSS_SELECTOR, ".scale").click()
        assert browser.run("return Chart.getChart(arguments[0]).scales.y.type", canvas) == scale
    assert browser.said() == []


TOOLTIP = """
const { tooltip } = Chart.getChart(arguments[0]);
return [tooltip.opacity, tooltip.title, tooltip.body.flatMap((item) => item.lines)];
"""


def test_pointing_at_a_plot_tells_its_values(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    _, canvas = plot(browser, "Peak memory")
    ActionChains(browser.driver).move_to_element_with_offset(canvas, canvas.size["width"] // 2 - 12, 0).perform()
    opacity, title, told = browser.run(TOOLTIP, canvas)
    assert (opacity, title) == (1, ["matching steps T: 50"])
    assert told == [" mtt: out of memory at 50.00 GiB", " dm: 3.00 GiB", " tesla: 512.0 MiB"]


def test_a_tap_tells_its_values(browser: Browser, made_up: Path) -> None:
    browser.open(made_up, width=390, height=844)
    _, canvas = plot(browser, "Time")
    box = browser.run(
        "const b = arguments[0].getBoundingClientRect(); return [b.right - 12, b.top + b.height / 2]", canvas
    )
    browser.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": box[0], "y": box[1]}])
    browser.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert browser.run(TOOLTIP, canvas) == [1, ["matching steps T: 50"], [" tesla: 15 s"]]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_navigation_is_whole(width: int, browser: Browser, made_up: Path) -> None:
    browser.open(made_up, width=width)
    clipped = "const n = document.querySelector('nav div'); return [n.scrollWidth > n.clientWidth, n.clientHeight < 60]"
    assert browser.run(clipped) == [False, width == 1280]  # in one line on a desk


def test_a_slider_shows_the_images_on_the_way(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    (slider,) = browser.all("input[type=range]")
    (image,) = browser.all(".picture:has(.slider) img")
    final, seen = image.get_attribute("src"), []
    for _ in range(2):
        browser.show(slider).send_keys(Keys.ARROW_LEFT)
        seen.append((slider.get_attribute("aria-valuetext"), str(image.get_attribute("src"))[:16]))
    assert seen == [("iteration 75", "data:image/webp;"), ("iteration 25", "data:image/webp;")]
    assert browser.run("return arguments[0].decode().then(() => arguments[0].naturalWidth)", image) > 0
    slider.send_keys(Keys.END)
    assert image.get_attribute("src") == final
    assert browser.said() == []


@pytest.mark.parametrize("name", ["made_up", "committed"])
def test_a_telephone_shows_all_of_it(name: str, browser: Browser, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(name), width=390, height=844)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    wider = """return [...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > 391)
      .map((e) => e.outerHTML.slice(0, 80));"""
    assert browser.run(wider) == []
    assert browser.run("return [...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth)")
    check_drawn(browser.run(PIXELS), every_line=name == "made_up")


def test_plots_follow_the_size_of_the_window(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    size = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.command("Emulation.setDeviceMetricsOverride", width=600, **size)
    widths = "return [...document.querySelectorAll('.canvas')].map((e) => [e.clientWidth, e.firstChild.clientWidth]);"
    browser.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found = browser.run(widths)
    assert found
    assert all(canvas == box < 600 for box, canvas in found)


@pytest.mark.parametrize("name", ["made_up", "committed"])
def test_text_can_be_read_in_the_light_and_in_the_dark(
    name: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    for dark in (False, True):
        browser.open(request.getfixturevalue(name), dark=dark)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        contrast, text, luminance = browser.run(CONTRAST)
        assert contrast >= 4.5, text
        assert (luminance < 0.02) if dark else (luminance > 0.9)


def test_the_button_turns_the_light_off(browser: Browser, made_up: Path) -> None:
    browser.open(made_up)
    (button,) = browser.all("#theme")
    ink = "return Chart.getChart(document.querySelector('canvas[role=img]')).options.scales.x.ticks.color"
    seen = []
    for _ in range(3):
        seen.append((button.text, browser.run(CONTRAST)[2] < 0.02, browser.run(ink)))
        button.click()
    assert [text for text, *_ in seen] == ["Dark", "Light", "Dark"]
    assert [is_dark for _, is_dark, _ in seen] == [False, True, False]
    assert seen[0] == seen[2]
    assert seen[0][2] != seen[1][2]  # the plots' text too
    assert browser.said() == []


def test_numbers_are_there_without_scripts(browser: Browser, made_up: Path) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made_up)
        (told,) = browser.all("noscript p")
        assert told.is_displayed()
        (numbers,) = browser.all("#time ~ .figures details table")
        assert not numbers.is_displayed()
        numbers.find_element(By.XPATH, "ancestor::details/summary").click()
        assert "tesla 50 1 100 15 s" in numbers.text
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)

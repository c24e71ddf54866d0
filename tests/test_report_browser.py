"""The report of a run, and the inspector's page, in Chromium: mouse, keys and finger, no script, phone, dark, paper."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from chats import BUNDLED, chat
from programs import PATIENCE, write_rows
from test_run_files import ABOUT, ANSWER, EVALUATION

from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.sources import find_sources
from minimind_sft.inspection.page import write_report_page
from minimind_sft.inspection.report import make_report
from minimind_sft.inspection.shown import first_rows
from minimind_sft.inspection.survey import survey
from minimind_sft.report.page import Finding
from minimind_sft.report.run_page import Inspected, write_run_page
from minimind_sft.settings.training import SFTSettings

pytestmark = pytest.mark.slow

LONG = "dataset/" + "a_long_name_without_a_break" * 6 + ".jsonl"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Writes the report of a run of 100 steps, evaluated at 0, 50 and 100."""
    lines: list[dict[str, Any]] = [{"step": 0, "run": {**ABOUT, "total_steps": 100, "command": f"python x.py {LONG}"}}]
    for step in range(101):
        if step:
            lines.append({"step": step, "loss": 4.0 * math.exp(-step / 30), "learning_rate": 1e-3 * (1 - step / 200),
                          "grad_norm": 2 + math.sin(step), "supervised_tokens_per_second": 900.0})
        if step % 50 == 0:
            score = {"loss": 3.0 - step / 50, "token_accuracy": step / 200, "tokens": 9}
            lines.append({**EVALUATION, "step": step, "eval_loss": score["loss"], "by_kind": {"a": score, LONG: score},
                          "answers": [{**ANSWER, "question": "word " * 99}, ANSWER]})
    lines += [{"step": 100, "warning": "The run is a test.", "name": "x"},
              {"step": 100, "end": "finished", "seconds": 5}]
    folder = tmp_path_factory.mktemp("report")
    metrics, page = folder / "sft_32_metrics.jsonl", folder / "sft_32_report.html"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_run_page(page, metrics, [Inspected(LONG, "training", [("rows", "3")], [Finding("wrong", "bad", [LONG] * 9)])])
    return page


@pytest.fixture(scope="module")
def inspected(tmp_path_factory) -> Path:
    """Writes the inspector's page of a file with a long name and bad rows."""
    folder = tmp_path_factory.mktemp("inspected")
    data = write_rows(folder / Path(LONG).name, [chat("q", "a" * 40), chat("q", "b"), {"text": 1}])
    encoder = SFTEncoder(BUNDLED, 20)
    tallies = survey([data], encoder)
    found = make_report(tallies, find_sources([str(data)], "FILE"), [], SFTSettings(), 1, False)
    write_report_page(folder / "page.html", found, first_rows(tallies, encoder, 3))
    return folder / "page.html"


@pytest.fixture
def opened(browser, report):
    """Opens a page in a new window with Playwright's options; checks that it says and loads nothing."""
    contexts, said, asked, wanted = [], [], [], set()

    def call(path: Path = report, **options) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        wanted.add(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert said == [] and set(asked) == wanted


def values(page, chart: int = 0) -> list[str]:
    return page.locator(".chart").nth(chart).locator("output").all_inner_texts()


def test_the_mouse_shows_the_values_of_a_step_in_all_charts(opened):
    page = opened(viewport={"width": 1200, "height": 900})
    last = [values(page), values(page, 3)]
    assert last[0][0] == "0.1427" and last[0][-1] == "1.0000"  # 4 exp(-100 / 30), 3 - 100 / 50
    plot = page.locator(".plot").first
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] / 2, "y": 20})
    page.locator(".at", has_text="step 50").first.wait_for()
    assert values(page)[0] == "0.7555" and values(page)[-1] == "2.0000"  # 4 exp(-50 / 30), 3 - 50 / 50
    assert page.locator(".chart .at").all_inner_texts() == ["step 50"] * page.locator(".chart").count()
    assert values(page, 2) == ["7.500e-4"]
    page.keyboard.press("Tab")
    page.locator("h1").hover()
    page.locator(".cursor").first.wait_for(state="detached")
    assert [values(page), values(page, 3)] == last and page.locator(".cursor").count() == 0


def test_keys_go_from_step_to_step(opened):
    page = opened()
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".at").first.inner_text() == "step 99"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".at").first.inner_text() == "step 100" and values(page)[0] == "0.1427"
    page.keyboard.press("Escape")
    assert page.locator(".at").first.inner_text() == ""


def test_a_finger_shows_values_and_they_stay(opened):
    page = opened(**PHONE)
    page.locator(".plot").first.scroll_into_view_if_needed()
    box = page.locator(".plot").first.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 30)
    page.locator(".at", has_text="step ").first.wait_for()
    assert values(page)[0] != "0.1427"


def test_without_a_script_it_is_a_picture_with_the_last_values(opened):
    page = opened(java_script_enabled=False)
    assert values(page)[0] == "0.1427"
    assert page.locator(".plot svg path").first.bounding_box()["width"] > 300


@pytest.mark.parametrize("width", [320, 768])
@pytest.mark.parametrize("which", ["report", "inspected"])
def test_nothing_is_wider_than_a_phone(opened, which, width, request):
    page = opened(request.getfixturevalue(which), viewport={"width": width, "height": 700})
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate("""[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg')
        && one.getBoundingClientRect().right > innerWidth).map(one => one.outerHTML.slice(0, 80))""")
    assert outside == []
    sizes = page.evaluate("[...document.querySelectorAll('.plot span')].map(one => getComputedStyle(one).fontSize)")
    assert set(sizes) <= {"11.5px"}  # letters do not shrink with the picture


@pytest.mark.parametrize("which", ["report", "inspected"])
def test_text_can_be_read_in_both_schemes_and_paper_is_white(opened, which, request):
    for scheme in ("light", "dark"):
        page = opened(request.getfixturevalue(which), color_scheme=scheme)
        assert page.evaluate(LOWEST_CONTRAST) >= 4.5  # WCAG 2.2, level AA
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(LOWEST_CONTRAST) >= 4.5


LOWEST_CONTRAST = """(() => {
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [red, green, blue] = parts(colour).map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const back = one => !one ? "rgb(255, 255, 255)" : (parts(getComputedStyle(one).backgroundColor)[3] === 0
    ? back(one.parentElement) : getComputedStyle(one).backgroundColor);
  const contrasts = [...document.querySelectorAll("main *")].filter(one => [...one.childNodes].some(
    node => node.nodeType === 3 && node.data.trim())).map(one => {
      const both = [luminance(getComputedStyle(one).color), luminance(back(one))].sort((a, b) => b - a);
      return (both[0] + 0.05) / (both[1] + 0.05);
    });
  return Math.min(...contrasts);
})()"""
"""The contrast of the text that is hardest to read, by the formula of WCAG 2.2."""

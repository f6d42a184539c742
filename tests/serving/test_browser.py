"""The page in a real browser: Debian's Chromium, driven by playwright. Skipped where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hosting import listening, make_run

from seqtune import runs
from seqtune.records import Hypothesis, Prediction

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PICTURES = os.environ.get("SEQTUNE_SCREENSHOTS")  # a folder to look at what the page looked like


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder / "names", "gpt2", num_beams=3, num_return=3)
    score = {"value": 0.5, "low": 0.2, "high": 0.8, "signature": "s"}
    runs.write_json(run / "metrics.json", {"num_items": 2, "exact_match": score, "edit_similarity": score})
    found = (Hypothesis("ethane", -0.7, 2, True),)
    runs.write_predictions(run / "predictions.jsonl", [Prediction("1", "CCO", "ethanol", "ethane", -0.7, found, "ok")])
    other = make_run(folder / "kinds", "gpt2", template="{kind} {input}:")
    with listening({"names": str(run), "kinds": str(other)}) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def page(browser, url):
    """The page, freshly opened; it must not complain in the console nor ask anybody else."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    made, complaints, asked = context.new_page(), [], []
    made.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "status of 4" not in m.text else None)
    made.on("pageerror", lambda e: complaints.append(str(e)))
    made.on("request", lambda r: asked.append(r.url))
    made.goto(url)
    made.wait_for_selector("#run:not([disabled]) option:nth-child(2)", state="attached")
    yield made
    context.close()
    assert not complaints
    assert all(a.startswith((url, "data:", "blob:")) for a in asked)


def picture(page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def check_accessibility(page) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_typing_with_the_keyboard_alone(page):
    page.focus("#inputs")
    page.keyboard.type("ethane gas")
    page.keyboard.press("Enter")
    page.keyboard.type("propane")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".answer:nth-of-type(2)")
    assert page.locator(".answer h3").all_text_contents() == ["ethane gas", "propane"]
    assert page.locator(".answer:first-of-type li").count() == 3
    assert "2 answered in" in page.locator("#status").text_content()
    assert page.evaluate("document.activeElement.id") == "inputs"
    assert page.locator("#history button").first.text_content().startswith("ethane gas and 1 more")
    picture(page, "answers")
    check_accessibility(page)
    page.reload()
    page.locator("#history button").first.click()
    assert page.input_value("#inputs") == "ethane gas\npropane"


def test_references_show_what_differs(page):
    page.fill("#inputs", "butane")
    page.locator("summary", has_text="Compare").click()
    page.fill("#references", "butane it is")
    page.click("#send")
    page.wait_for_selector(".answer ins")
    marked = page.locator(".answer li").first
    rebuilt = marked.evaluate("li => { const t = li.querySelector('.text').cloneNode(true); t.querySelectorAll('del').forEach(d => d.remove()); return t.textContent; }")  # fmt: skip
    assert rebuilt == "butane it is"


def test_a_file_is_dropped_answered_and_fetched(page, tmp_path):
    table = tmp_path / "inputs.csv"
    table.write_text("input\n" + "".join(f"pentane {i}\n" for i in range(30)))
    page.set_input_files("#file", table)
    page.wait_for_selector("#job-csv:not([hidden])")
    assert page.locator("#job-status").text_content() == "All 30 rows are answered."
    with page.expect_download() as fetched:
        page.click("#job-csv")
    assert len(Path(fetched.value.path()).read_text().splitlines()) >= 31
    picture(page, "file")
    page.click("#job-stop")
    page.wait_for_selector("#job", state="hidden")


def test_a_file_is_cancelled(page, tmp_path, monkeypatch):
    from hosting import slow_steps

    table = tmp_path / "inputs.csv"
    table.write_text("input\n" + "".join(f"pentane {i}\n" for i in range(300)))
    slow_steps(monkeypatch, 0.1)
    page.set_input_files("#file", table)
    page.wait_for_selector("text=of 300 rows")
    page.click("#job-stop")
    page.wait_for_selector("#job", state="hidden")
    assert page.locator("#problem").is_hidden()


def test_errors_and_what_is_empty(page, tmp_path):
    page.click("#send")
    assert page.locator("#status").text_content() == "Type at least one input."
    page.fill("#inputs", "x" * 10_001)
    page.click("#send")
    page.wait_for_selector("#problem:not([hidden])")
    assert "input 1 has 10,001 characters" in page.locator("#problem").text_content()
    picture(page, "error")
    check_accessibility(page)
    bad = tmp_path / "table.xlsx"
    bad.write_bytes(b"no")
    page.set_input_files("#file", bad)
    assert "must end in .csv" in page.locator("#problem").text_content()
    bad = tmp_path / "table.csv"
    bad.write_text("other\nx\n")
    page.set_input_files("#file", bad)
    page.wait_for_selector("text=has no column 'input'")


def test_cancelling_a_search(page, monkeypatch):
    from hosting import slow_steps

    slow_steps(monkeypatch, 0.3)
    page.fill("#inputs", "hexane")
    page.click("#send")
    page.click("#stop")
    page.wait_for_selector("text=Cancelled.")
    assert page.locator(".answer").count() == 0


def test_other_runs_and_their_columns(page):
    page.select_option("#run", "kinds")
    page.fill("#inputs", "hexane")
    page.fill("#column-kind", "alkane")
    page.click("#send")
    page.wait_for_selector(".answer")
    assert "no scores" in page.locator("#card").text_content()


def test_scores_and_wrong_answers(page):
    assert "exact match" in page.locator("#card").text_content()
    page.click("#errors summary")
    page.wait_for_selector(".wrong")
    assert page.locator(".wrong ins").text_content() == "ol"
    page.fill("#filter", "nothing like it")
    assert page.locator("#wrong").text_content() == "None of them contains that."


def test_dark_and_narrow(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.select_option("#theme", "dark")
    page.fill("#inputs", "a-very-long-name-that-has-no-blanks-and-goes-on-and-on-and-on-and-on-and-on")
    page.click("#send")
    page.wait_for_selector(".answer")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "phone-dark")
    check_accessibility(page)
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_it_is_there_at_once(page):
    """First paint on loopback; the budget is half a second, here twice that, because tests share their cores."""
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000


def test_a_token_is_asked_for_and_kept_in_the_tab(browser, tmp_path):
    run = make_run(tmp_path / "secret", "gpt2")
    with listening({"secret": str(run)}, token="a-token-of-some-length") as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#token-form:not([hidden])")
        picture(page, "token")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-form:not([hidden])")
        page.fill("#token", "a-token-of-some-length")
        page.keyboard.press("Enter")
        page.wait_for_selector("#run option[value=secret]", state="attached")
        assert page.locator("#token-form").is_hidden()
        assert "a-token-of-some-length" in page.evaluate("JSON.stringify(sessionStorage)")
        page.close()

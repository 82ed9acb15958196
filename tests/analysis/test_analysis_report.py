"""The report: whole in one file, of runs in every state, and usable in a real browser."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import BadInput, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """What a report holds: its scripts by identity, its text, and where it points."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self.text = ""
        self.links: list[str] = []
        self._within: tuple[str, str | None] = ("", None)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._within = (tag, given.get("id"))
        self.links += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "script":
            self.scripts.append(given.get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        self._within = ("", None)

    def handle_data(self, data: str) -> None:
        tag, name = self._within
        if tag == "script" and name is not None:
            self.data[name] = json.loads(data)
        elif tag not in ("script", "style"):
            self.text += data


def page_of(path: Path) -> Page:
    return Page(report.write(path, path / "out.html").read_text())


def test_the_answer_comes_first_with_what_it_is_worth(run: Any) -> None:
    found = page_of(run.path)
    best = analysis.rank(run.path).iloc[0]
    said = found.text[found.text.index("Take") :]
    assert said.index(f"{100 * best['valid_accuracy']:.2f}") < said.index("Students, best first")
    assert f"dux export {run.path} --rank 1" in said
    assert {chart["name"] for chart in found.data["chart-data"]} >= {"cost", "curves", "best", "timeline"}


def test_all_trials_are_in_it_with_what_is_known_of_them(run: Any) -> None:
    told = page_of(run.path).data["trial-data"]
    trials = analysis.load(run.path).trials
    assert len(told["rows"]) == len(trials)
    for name in ("number", "status", "params"):
        assert [row[told["columns"].index(name)] for row in told["rows"]] == trials[name].tolist()
    accuracy = [row[told["columns"].index("valid_accuracy")] for row in told["rows"]]
    assert [value is None for value in accuracy] == trials["valid_accuracy"].isna().tolist()


def test_pictures_hold_the_frames_numbers_and_their_units(run: Any) -> None:
    charts = {chart["name"]: chart for chart in page_of(run.path).data["chart-data"]}
    results = analysis.load(run.path)
    curves = charts["curves"]["data"]
    drawn = sorted(y for trace in curves for y in trace["y"] if y is not None)
    taught = results.epochs[results.epochs["valid_accuracy"].notna() & ~results.epochs["control"]]
    assert drawn == pytest.approx(sorted(100 * taught["valid_accuracy"]), rel=1e-5)
    assert charts["best"]["data"][0]["y"][-1] == pytest.approx(
        100 * analysis.best_so_far(results)["best"].max(), rel=1e-5
    )
    for chart in charts.values():
        assert chart["caption"].endswith(".")
        assert all(axis["title"]["text"] or axis.get("type") == "category"
                   for axis in (chart["layout"]["xaxis"], chart["layout"]["yaxis"]))  # fmt: skip


def test_it_fetches_nothing_and_what_a_run_says_is_text(new_run: Callable[..., Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    run = new_run(name=evil)
    run.stage(evil, 1)
    run.distil(evil, 0, [0.5, 0.6], width=4)
    run.trial(evil, 1, 8, arch={"width": evil})
    run.end(evil, 1, "failed", reason=evil)
    (run.path / "recipe.yaml").write_text(evil)
    found = page_of(run.path)
    assert found.scripts == ["chart-data", "trial-data", "", ""]
    assert found.links == []
    assert "alert(1)" in found.text


@pytest.mark.parametrize("state", ["empty", "running", "failed", "scored"])
def test_a_run_in_any_state_has_a_report_that_says_so(new_run: Callable[..., Any], state: str) -> None:
    run = new_run()
    if state in ("running", "failed"):
        run.stage("short", 1)
        for number in range(3):
            run.trial("short", number, 2 + number)
        if state == "running":
            run.report("short", 0, 1, 0.5)
        else:
            for number in range(3):
                run.end("short", number, "failed", reason="ValueError: no such kernel")
    if state == "scored":
        run.stage("score", 1, "score", objective={"snip": 1.0}, combine="rank", epochs=None)
        for number, width in enumerate((2, 4)):
            run.trial("score", number, width)
            run.score("score", number, snip=float(width))
            run.end("score", number)
    said = page_of(run.path).text
    expected = {
        "empty": "No trial has ended yet.",
        "running": "This run has not ended.",
        "failed": "3 of 3 trials failed. The commonest reason: ValueError: no such kernel",
        "scored": "By its scores without training the first of 2 students is",
    }
    assert expected[state] in said


def test_what_is_no_run_or_cannot_be_written_is_one_line(run: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a run"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="cannot be written"):
        report.write(run.path, tmp_path / "nowhere" / "report.html")
    before = sorted(os.listdir(run.path))
    assert report.write(run.path) == run.path / "report.html"
    assert sorted(os.listdir(run.path)) == sorted([*before, "report.html"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with sync_api.sync_playwright() as playing:
        found = playing.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def test_in_a_browser_it_draws_sorts_and_filters_without_a_complaint(run: Any, browser: Any) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"file://{report.write(run.path)}")
    trials = analysis.load(run.path).trials
    assert page.locator("#trials tbody tr").count() == len(trials)

    page.get_by_role("button", name="params", exact=True).click()
    columns = json.loads(page.locator("#trial-data").text_content())["columns"]
    cells = page.locator(f"#trials tbody td:nth-child({columns.index('params') + 1})").all_text_contents()
    assert list(map(int, cells)) == sorted(trials["params"], reverse=True)

    page.locator("#status").select_option("completed")
    assert page.locator("#trials tbody tr").count() == (trials["status"] == "completed").sum()
    page.locator("#filter").fill("no such text")
    assert page.locator("#trials tbody tr").count() == 0
    assert page.locator("#count").text_content() == f"0 of {len(trials)} trials"

    for chart in page.locator("#charts figure > div").all():
        chart.scroll_into_view_if_needed()
        chart.locator("svg.main-svg").first.wait_for(timeout=20_000)
    assert page.locator("#charts figure").count() >= 4
    assert re.search(r"\S", page.locator(".take").text_content())
    assert complaints == []
    page.close()

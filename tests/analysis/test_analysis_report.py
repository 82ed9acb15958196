"""The report: whole in one file, of runs in every state, and usable in a real browser."""

import base64
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb

import analysis
from analysis import BadInput, report
from analysis.palette import PALETTES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """What a report holds: its scripts by identity, its text, and where it points."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self.text = ""
        self.links: list[str] = []
        self.is_data = False
        self._within: tuple[str, str | None] = ("", None)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._within = (tag, given.get("id"))
        self.is_data = given.get("type") == "application/json"
        self.links += [str(given[name]) for name in ("src", "href", "srcset") if name in given]
        if tag == "script":
            self.scripts.append(given.get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        self._within = ("", None)

    def handle_data(self, data: str) -> None:
        tag, name = self._within
        if tag == "script" and name is not None and self.is_data:
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
    assert found.scripts == ["chart-data", "trial-data", "palettes", "plotly", ""]
    assert found.links == []
    assert "alert(1)" in found.text
    parts = ("name", "text", "x", "y")
    traces = [trace for chart in found.data["chart-data"] for trace in chart["data"]]
    said = json.dumps([trace[part] for trace in traces for part in parts if part in trace])
    assert "alert(1)" in said
    assert "<" not in said  # plotly reads tags in its texts


def test_what_a_run_lacks_is_left_out(new_run: Callable[..., Any]) -> None:
    run = new_run()
    told = {"name": "odd", "source": None, "params": None, "seconds": None, "metrics": {"test_accuracy": "high"}}
    run.file.write_text(run.file.read_text().replace('"event": "teacher"', '"event": "other"'))
    run.add("teacher", **told)
    run.stage("short", 1)
    run.trial("short", 0, 4, cost=None)
    run.add("report", stage="short", number=0, epoch=1, seconds=None, metrics={"valid_accuracy": 0.5})
    run.end("short", 0)
    found = page_of(run.path)
    assert "50.00 %" in found.text
    assert "the teacher's" not in found.text
    assert {chart["name"] for chart in found.data["chart-data"]} == {"curves", "best"}


def test_hyperparameters_of_one_name_are_told_apart_and_sizes_are_those_deployed(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    searched = {"losses.kd.temperature": 4, "losses.dkd.temperature": 2.5, "optimizer.lr": 0.1}
    run.distil("short", 0, [0.5, 0.6], params=searched, last={"deployed_params": 123, "deployed_flops": 456})
    said = page_of(run.path).text
    assert "kd.temperature 4, dkd.temperature 2.5, lr 0.1" in said
    answer = said[: said.index("Students, best first")]
    assert "parameters123" in answer
    assert "multiply-adds of an image456" in answer


def test_commands_can_be_typed_as_they_stand(run: Any) -> None:
    moved = run.path.rename(run.path.with_name("it's a run"))
    (moved / "ledger.jsonl").write_text("".join((moved / "ledger.jsonl").read_text().splitlines(keepends=True)[:-1]))
    said = page_of(moved).text
    quoted = shlex.quote(str(moved))
    assert shlex.split(quoted) == [str(moved)] != [quoted]
    assert f"dux resume {quoted}" in said
    assert f"dux export {quoted} --rank 1" in said


def test_the_answer_says_how_sure_it_is_and_draws_the_student(run: Any) -> None:
    found = page_of(run.path)
    assert re.search(r"it would be the first of 2 in \d+ % of cases", found.text)
    assert found.links == []  # a student of one choice that is no network that can be drawn
    run.distil("final", 9, [0.5, 0.6, 0.99], width=32, proposal=9, arch={"depth1": 2, "depth2": 1, "width": 32})
    light, dark = sorted(page_of(run.path).links)
    assert light != dark
    for link in (light, dark):
        kind, _, data = link.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)


def searched(new_run: Callable[..., Any]) -> Any:
    """Scores of twelve students and a stage that distils them: the depth is what matters."""
    run = new_run(name="<b>searched</b>")
    run.stage("score", 1, "score", objective={"snip": 1.0}, combine="rank", epochs=None)
    archs: list[dict[str, int]] = [{"depth1": depth, "width": width} for depth in (1, 2, 3, 4) for width in (2, 4, 8)]
    who = [{"arch": arch, "hash": f"{number:016x}"} for number, arch in enumerate(archs)]
    for number, one in enumerate(who):
        run.trial("score", number, **one)
        run.score("score", number, snip=float(number), nwot=float(-number))
        run.end("score", number)
    run.stage("short", 2)
    for number, one in enumerate(who):
        end = 0.1 + 0.2 * one["arch"]["depth1"] + 0.001 * number
        run.distil(
            "short",
            number,
            [0.1, end / 2, 0.9 * end, end],
            **one,
            last={"teacher_similarity": end, "latency_ms": 1 + number},
        )
    run.add("run_end", seconds=60.0)
    return run


def test_pictures_of_what_goes_with_accuracy(new_run: Callable[..., Any]) -> None:
    run = searched(new_run)
    charts = {chart["name"]: chart for chart in page_of(run.path).data["chart-data"]}
    assert {"cost", "flops", "importance", "likeness", "scores", "foretold"} <= set(charts)
    [bars] = charts["importance"]["data"]
    assert bars["y"][-1] == "depth1"
    assert bars["x"] == sorted(bars["x"])
    assert charts["scores"]["data"][0]["name"].startswith(("snip:", "params:"))
    assert "tau 1.00" in charts["scores"]["data"][0]["name"]
    assert "Kendall's tau of the two is 1.00 (n = 12 trials)" in charts["likeness"]["caption"]
    [early] = charts["foretold"]["data"]
    assert early["x"] == [2.0, 3.0]  # after the first all are alike
    assert early["y"] == [1.0, 1.0]
    colours = {
        trace["name"]: trace["marker"]["color"] for name in ("cost", "timeline") for trace in charts[name]["data"]
    }
    assert colours["short"] != colours["score"]
    front = charts["cost"]["data"][-1]
    points = [point for trace in charts["cost"]["data"][:-1] for point in zip(trace["x"], trace["y"], strict=True)]
    assert set(zip(front["x"], front["y"], strict=True)) <= set(points)


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone_and_in_the_dark_it_fits_and_can_be_read(
    scheme: str, new_run: Callable[..., Any], browser: Any
) -> None:
    file = report.write(searched(new_run).path)
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.goto(f"file://{file}")
    for chart in page.locator("#charts figure > div").all():
        chart.scroll_into_view_if_needed()
        chart.locator("svg.main-svg").first.wait_for(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("#charts a").count() == 0
    assert "<b>searched</b>" in page.locator("h1").text_content()
    shown = page.locator("picture img").evaluate("one => one.currentSrc === one.src")
    assert shown == (scheme == "light")  # the other one is for dark paper
    drawn = page.locator("#chart-importance .bars path").first.evaluate("one => getComputedStyle(one).fill")
    blue = to_rgb(PALETTES[scheme].colours[0])
    assert [int(part) for part in re.findall(r"\d+", drawn)[:3]] == [round(255 * part) for part in blue]
    # On paper in the colours of light paper, whatever the screen's.
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    light = [round(255 * part) for part in to_rgb(PALETTES["light"].colours[0])]
    page.wait_for_function(
        "rgb => getComputedStyle(document.querySelector('#chart-importance .bars path')).fill.includes(rgb)",
        arg=", ".join(map(str, light)),
    )
    page.close()

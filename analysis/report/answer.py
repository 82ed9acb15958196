"""The report's first lines: which student to take, and what it is worth."""

import base64
import html
import io
import math
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.confidence import confidence
from analysis.deployed import as_deployed
from analysis.errors import BadInput
from analysis.naming import known_number, student_name
from analysis.ranking import rank, rank_scores
from analysis.report.tables import number, settings
from analysis.results import Results

if TYPE_CHECKING:
    from analysis.plots import Picture


def ranked(results: Results) -> pd.DataFrame:
    """The run's students, best first, as far as it has come; those that were only scored, where none was trained."""
    trained = results.trials["valid_accuracy"].notna().any()
    try:
        return as_deployed(rank(results))[0] if trained else rank_scores(results)
    except BadInput:  # nothing that could be ranked: no trial has finished
        return pd.DataFrame()


def html_of(results: Results, table: pd.DataFrame) -> str:
    """What to take and why, or why there is nothing to take."""
    state = "" if results.finished else f'<p class="note">{html.escape(_unfinished(results))}</p>'
    if table.empty or "valid_accuracy" not in table or table["valid_accuracy"].isna().all():
        return state + _nothing(results, table)
    best = {str(name): value for name, value in table.iloc[0].items()}
    facts = [*_reached(best), *_teacher(results)]
    known = [(html.escape(name), html.escape(value)) for name, value in facts if value != "-"]
    told = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in known)
    name = html.escape(student_name(best["arch"]) + settings(best))
    seeds = f"± is the standard deviation over {best['seeds']} seeds" if best["seeds"] > 1 else "one seed"
    command = f"<pre>{html.escape(f'dux export {_quoted(results)} --rank 1 --format onnx')}</pre>"
    replayed = "<p>Replayed from recorded results, in virtual time: nothing was trained that could be exported.</p>"
    return (
        f'{state}<p>Take</p><p class="take">{name}</p><dl>{told}</dl>{_drawing(best)}'
        f"<p>{html.escape(_how_sure(results))} {seeds}; chosen on validation images, test images were seen once.</p>"
        f"{replayed if results.replayed else command}"
    )


def _reached(best: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the student reaches, and costs."""
    return [
        ("validation accuracy", _share(best, "valid_accuracy")),
        ("test accuracy", _share(best, "test_accuracy")),
        ("test accuracy without the teacher", _share(best, "test_accuracy_alone")),
        ("what the teacher adds on test images", _share(best, "test_accuracy_delta", "+", "points")),
        ("likeness to the teacher", number(best.get("teacher_similarity"), best.get("teacher_similarity_std"), 1, 3)),
        ("parameters", number(best.get("params"), digits=0)),
        ("multiply-adds of an image", number(best.get("flops"), digits=0)),
        ("latency of one image (ms)", number(best.get("latency_ms"), digits=2)),
    ]


def _drawing(best: Mapping[str, Any]) -> str:
    """The student as a picture for light and for dark paper, where its space is one that can be drawn."""
    from analysis.plots.architecture import draw  # matplotlib takes a while

    name = student_name(best["arch"])
    try:
        light, dark = (_encoded(draw(best["arch"], theme=theme, title=" ")) for theme in ("light", "dark"))
    except BadInput:
        return ""
    where = "screen and (prefers-color-scheme: dark)"  # not on paper
    shown = f'<img alt="the layers of {html.escape(name)}" src="{light}">'
    return f'<picture><source media="{where}" srcset="{dark}">{shown}</picture>'


def _encoded(picture: "Picture") -> str:
    out = io.BytesIO()
    picture.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def _how_sure(results: Results) -> str:
    """How often it would be first, trained again with other seeds; nothing where no student has two."""
    try:
        found = confidence(results, top=1, resamples=300)
    except BadInput:
        return ""
    first = found.ranks["first"].iloc[0] if len(found.ranks) else math.nan
    if found.of < 2 or math.isnan(first):
        return ""
    return f"Trained again with other seeds, it would be the first of {found.of:,} in {100 * first:.0f} % of cases."


def _unfinished(results: Results) -> str:
    then = f"unless it is running, go on with it: dux resume {_quoted(results)}"
    return f"This run has not ended. What follows is as far as it has come; {then}"


def _quoted(results: Results) -> str:
    """The run, to be typed."""
    return shlex.quote(str(results.path))


def _nothing(results: Results, table: pd.DataFrame) -> str:
    if len(table) and "arch" in table:
        name, of = html.escape(student_name(table.iloc[0]["arch"])), f"{len(table):,} students"
        return f'<p>By its scores without training the first of {of} is</p><p class="take">{name}</p>'
    failed = results.trials[results.trials["status"] == "failed"]
    if len(failed):
        reason = failed["reason"].mode()
        why = f" The commonest reason: {reason.iloc[0]}" if len(reason) else ""
        return f"<p>{html.escape(f'{len(failed):,} of {len(results.trials):,} trials failed.{why}')}</p>"
    return "<p>No trial has ended yet.</p>"


def _share(row: Mapping[str, Any], name: str, sign: str = "", unit: str = "%") -> str:
    text = number(row.get(name), row.get(f"{name}_std"), 100, 2, sign)
    return text if text == "-" else f"{text} {unit}"


def _teacher(results: Results) -> list[tuple[str, str]]:
    found = []
    for teacher in results.teachers[:1]:
        accuracy = known_number((teacher.get("metrics") or {}).get("test_accuracy"))
        found.append(("the teacher's test accuracy", _share({"test_accuracy": accuracy}, "test_accuracy")))
        found.append(("the teacher's parameters", number(known_number(teacher.get("params")), digits=0)))
    return found

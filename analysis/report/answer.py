"""The report's first lines: which student to take, and what it is worth."""

import html

import pandas as pd

from analysis.errors import BadInput
from analysis.naming import student_name
from analysis.ranking import rank, rank_scores
from analysis.report.tables import number, settings
from analysis.results import Results


def ranked(results: Results) -> pd.DataFrame:
    """The run's students, best first, as far as it has come; those that were only scored, where none was trained."""
    trained = results.trials["valid_accuracy"].notna().any()
    try:
        return rank(results) if trained else rank_scores(results)
    except BadInput:  # nothing that could be ranked: no trial has finished
        return rank(results).head(0) if trained else pd.DataFrame()


def html_of(results: Results, table: pd.DataFrame) -> str:
    """What to take and why, or why there is nothing to take."""
    state = "" if results.finished else f'<p class="note">{html.escape(_unfinished(results))}</p>'
    if table.empty or "valid_accuracy" not in table or table["valid_accuracy"].isna().all():
        return state + _nothing(results, table)
    best = {str(name): value for name, value in table.iloc[0].items()}
    facts = [
        ("validation accuracy", _share(best, "valid_accuracy")),
        ("test accuracy", _share(best, "test_accuracy")),
        ("test accuracy without the teacher", _share(best, "test_accuracy_alone")),
        ("what the teacher adds on test images", _share(best, "test_accuracy_delta", signed=True)),
        ("likeness to the teacher", number(best.get("teacher_similarity"), best.get("teacher_similarity_std"), 1, 3)),
        ("parameters", number(best.get("params"), digits=0)),
        ("multiply-adds of an image", number(best.get("flops"), digits=0)),
        *_teacher(results),
    ]
    known = [(html.escape(name), html.escape(value)) for name, value in facts if value != "-"]
    told = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in known)
    name = html.escape(student_name(best["arch"]) + settings(best))
    seeds = f"± is the standard deviation over {best['seeds']} seeds" if best["seeds"] > 1 else "one seed"
    command = html.escape(f"dux export {results.path} --rank 1 --format onnx")
    return (
        f'{state}<p>Take</p><p class="take">{name}</p><dl>{told}</dl>'
        f"<p>{seeds}; chosen on validation images, test images were seen once.</p><pre>{command}</pre>"
    )


def _unfinished(results: Results) -> str:
    return f"This run has not ended. What follows is as far as it has come; go on with it: dux resume {results.path}"


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


def _share(row: dict[str, object], name: str, signed: bool = False) -> str:
    text = number(row.get(name), row.get(f"{name}_std"), 100, 2)
    if text == "-":
        return text
    return f"{'+' if signed and not text.startswith('-') else ''}{text} %"


def _teacher(results: Results) -> list[tuple[str, str]]:
    found = []
    for teacher in results.teachers[:1]:
        metrics = teacher.get("metrics") or {}
        found.append(("the teacher's test accuracy", _share(metrics, "test_accuracy")))
        found.append(("the teacher's parameters", number(teacher.get("params"), digits=0)))
    return found

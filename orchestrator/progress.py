"""What is shown while a run goes on: one live table in a terminal or a notebook, a line a stage elsewhere."""

import io
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.book import Book
from orchestrator.disk import disk_line
from orchestrator.plain_values import printable
from orchestrator.run_directory import Run

SECONDS_BETWEEN = {"display": 0.25, "tables": 15.0}


class Progress:
    """The run's display. Calling it says that something has changed; `stage` says which stage is on.

    Args:
        run: whose tables are brought up to date as it goes.
        live: show a live display; None decides by where the output goes.
    """

    def __init__(self, run: Run, live: bool | None = None) -> None:
        self.run = run
        self.console = Console(stderr=True, markup=False, emoji=False)
        self.live = (self.console.is_terminal or self.console.is_jupyter) if live is None else live
        self.books: list[tuple[Book, float]] = []
        self._display: Live | None = None
        self._last = dict.fromkeys(SECONDS_BETWEEN, time.monotonic())
        self._page: Any = None

    def __enter__(self) -> "Progress":
        self._say(f"run {self.run.address}")
        if self.live and self.console.is_jupyter:
            from IPython.display import display

            self._page = display(display_id=True)
        elif self.live:
            self._display = Live(self._table(), console=self.console, auto_refresh=False, transient=True)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        if self._display is not None:
            self._display.stop()
            self.console.print(self._table())
        self.console.print(disk_line(self.run.path), highlight=False, soft_wrap=True)

    def stage(self, index: int, book: Book) -> None:
        """A stage begins, or is read back."""
        self.books.append((book, time.monotonic()))
        self._show()
        if not book.ended:
            self._say(f"stage {index + 1} of {len(self.run.recipe.stages)}: {book.stage.name}")

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last["tables"] > SECONDS_BETWEEN["tables"]:
            self._last["tables"] = now
            self.run.write_tables()
        if now - self._last["display"] > SECONDS_BETWEEN["display"]:
            self._last["display"] = now
            self._show()

    def _say(self, text: str) -> None:
        """A line for logs, where there is no live display."""
        if not self.live:
            self.console.print(printable(text), highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if self._display is not None:
            self._display.update(self._table(), refresh=True)
        elif self._page is not None:
            from IPython.display import HTML

            self._page.update(HTML(_as_html(self._table())))

    def _table(self) -> Table:
        table = Table(title=f"dux {self.run.recipe.name}", title_justify="left", title_style="bold")
        for column in ("stage", "done", "stopped", "failed", "running", "best so far", "device-seconds", "left"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for book, began in self.books:
            table.add_row(*_row(book, began))
        shown = {book.stage.name for book, _ in self.books}
        for stage in self.run.recipe.stages:
            if stage.name not in shown:
                table.add_row(stage.name, *[""] * 7, style="dim")
        return table


def _row(book: Book, began: float) -> tuple[str, ...]:
    total = expected(book)
    finished = sum(book.count(status) for status in ("completed", "stopped", "failed"))
    if book.stage.trial == "score":
        value = f"{book.count('completed') // book.stage.seeds} scored"
    else:
        accuracies = [t.metrics["valid_accuracy"] for t in book.trials.values() if t.reports and not t.control]
        value = f"{max(accuracies):.2%} valid." if accuracies else ""
    spent = sum(report["seconds"] for trial in book.trials.values() for report in trial.reports)
    left = (time.monotonic() - began) * (total - finished) / finished if finished and not book.ended else None
    return (
        book.stage.name,
        f"{book.count('completed')} of {total}",
        str(book.count("stopped")),
        str(book.count("failed")),
        str(book.count("running")),
        value,
        f"{spent:,.1f}",
        "" if left is None else f"about {left:,.0f} s",
    )


def expected(book: Book) -> int:
    """How many trials the stage will have, as far as is known."""
    proposals = max(book.stage.trials or 0, len(book.proposals))
    return proposals * book.stage.seeds * (2 if book.stage.control else 1)


def _as_html(table: Table) -> str:
    console = Console(record=True, width=110, file=io.StringIO(), markup=False, emoji=False)
    console.print(table)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

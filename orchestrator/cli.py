"""The command `dux`. Imports only what parsing takes: torch and Ray come with the commands that need them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds the student network that learns most from a given teacher.",
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: this machine alone.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name (dux list recipes) or YAML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Override a value of the recipe, as in stages.short.epochs=3."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the recipe's and the time.")] = None,
    storage: Annotated[Path, typer.Option(help="Where runs lie.")] = Path("runs"),
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
) -> None:
    """Search for the best student of the recipe's teacher."""
    overrides = dict(_assignment(text) for text in set_ or [])
    from orchestrator import launch, show
    from orchestrator.recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    if dry_run:
        from orchestrator.plan import plan

        show.console().print(plan(loaded), soft_wrap=True, highlight=False)
        return
    _present(launch.launch(loaded, {}, storage, name, address, None))


@app.command()
def resume(path: RunPath, address: Address = None) -> None:
    """Go on with an interrupted run; nothing that has finished runs again."""
    from orchestrator import launch

    _present(launch.take_up(path, address, None))


@app.command()
def status(path: RunPath) -> None:
    """How far a run is, and what has failed."""
    import analysis
    from orchestrator import run_directory as runs
    from orchestrator import show

    runs.check_run(path)
    show.console().print(show.status(analysis.load(path), runs.holder(path)), highlight=False)


@app.command()
def rank(
    path: RunPath,
    by: Annotated[
        str | None, typer.Option(help="Metrics to rank by, as in valid_accuracy or valid_accuracy=1,params=1e-6.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Which students, as in 'params < 10000 and arch.width >= 4'.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Of which stage; default: the last one.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many.")] = None,
    output: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """The students of a run, best first."""
    import analysis
    from orchestrator import show

    if output not in ("table", "csv", "json"):
        raise analysis.BadInput(f"unknown format {output!r}; known: csv, json, table")
    results = analysis.load(path)
    table = analysis.rank(results, by=_weights(by), where=where, stage=stage, top=top)
    if output == "table":
        show.console().print(show.ranking(results, table), highlight=False)
    else:
        text = table.to_csv(index=False) if output == "csv" else table.to_json(orient="records", lines=True)
        typer.echo(text, nl=False)


KINDS = ("spaces", "scores", "losses", "samplers", "schedulers", "recipes", "data")


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS))]) -> None:
    """What can be named in a recipe."""
    from orchestrator import show
    from orchestrator.catalogue import CATALOGUE
    from spaces.errors import unknown

    if kind not in CATALOGUE:
        raise unknown("kind", kind, CATALOGUE)
    show.console().print(show.table_of(CATALOGUE[kind](), kind), highlight=False)


def _present(results: Any) -> None:
    """The ranked table, where the run lies, and what to type next."""
    import analysis
    from orchestrator import show

    out = show.console()
    out.print(show.ranking(results, analysis.rank(results)), highlight=False)
    out.print(
        f"\nthe run lies in {results.path}; its best student in {results.path / 'best'}",
        highlight=False,
        soft_wrap=True,
    )
    out.print(
        f"next: dux rank {results.path} --by valid_accuracy --where 'params < 10000'", highlight=False, soft_wrap=True
    )
    out.print(f"      dux status {results.path}", highlight=False, soft_wrap=True)


def _assignment(text: str) -> tuple[str, Any]:
    from spaces.errors import BadInput

    path, sign, value = text.partition("=")
    if not sign or not path:
        raise BadInput(f"--set takes PATH=VALUE, not {text!r}")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {path}: {value!r} is no YAML value") from error


def _weights(text: str | None) -> str | dict[str, float] | None:
    from analysis import BadInput

    if text is None or "=" not in text:
        return text
    weights = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError as error:
            raise BadInput(f"--by takes METRIC or METRIC=WEIGHT,..., not {text!r}") from error
    return weights


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2, a run that failed exit code 1."""
    raise SystemExit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        command()
    except ValueError as error:
        # The one clear line is for what dux itself refuses; anything else is a bug and keeps its traceback.
        if type(error).__name__ != "BadInput":
            raise
        typer.echo(f"dux: {error}", err=True)
        return 2
    except Exception as error:
        if type(error).__name__ != "RunFailed":
            raise
        typer.echo(f"dux: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    main()

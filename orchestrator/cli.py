"""The command `dux`. Imports only what parsing takes: torch and Ray come with the commands that need them."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from orchestrator.signals import at_the_command_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds the student network that learns most from a given teacher.",
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name (dux list recipes), YAML file, or run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the recipe, as in stages.short.epochs=3."),
]
Name = Annotated[str | None, typer.Option(help="Name of the run; default: the recipe's and the time.")]
Storage = Annotated[str, typer.Option(help="Where runs lie: a folder, or an object store as in s3://bucket/runs.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory, or its address in an object store.")]
By = Annotated[
    str | None, typer.Option(help="Metrics to rank by, as in valid_accuracy or valid_accuracy=1,params=1e-6.")
]
Where = Annotated[str | None, typer.Option(help="Which students, as in 'params < 10000 and arch.width >= 4'.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: this machine alone.")]


@app.command()
def run(
    recipe: RecipeName,
    set_: Overrides = None,
    name: Name = None,
    storage: Storage = "runs",
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
    origin: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="An earlier run to start from: what it knows is kept.")
    ] = None,
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="Go on with the run of this name if there is one.")
    ] = False,
) -> None:
    """Search for the best student of the recipe's teacher."""
    overrides = dict(_assignment(text) for text in set_ or [])
    if not dry_run and not _is_replay(recipe, overrides):
        _start_ray(address)
    from orchestrator import launch, show
    from orchestrator.recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    if dry_run:
        from orchestrator.plan import plan

        show.console().print(plan(loaded), soft_wrap=True, highlight=False)
        return
    earlier = _place(origin) if origin is not None else None
    _present(launch.launch(loaded, {}, _place(storage), name, address, None, earlier, or_resume))


@app.command()
def submit(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="As for run; without one, attach to the run of this name.")
    ] = None,
    set_: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the recipe's.")] = None,
    storage: Annotated[str, typer.Option(help="Where runs lie: a path that all nodes share, or s3://...")] = "runs",
    address: Annotated[str, typer.Option(help="Of the cluster's dashboard.")] = "http://127.0.0.1:8265",
) -> None:
    """Run a search as a job of a Ray cluster, with the code that is installed here, and follow its log.

    The same command finds the run again: it follows the job that runs, and sends one that failed again.
    """
    overrides = dict(_assignment(text) for text in set_ or [])
    from orchestrator.recipe import Recipe
    from orchestrator.submit import submit

    raise typer.Exit(submit(Recipe.load(recipe, overrides) if recipe else None, name, storage, address))


@app.command()
def score(
    recipe: RecipeName,
    every: Annotated[bool, typer.Option("--all", help="Every student of the space that is within the limits.")] = False,
    arch: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE,...", help="This student; may be given several times.")
    ] = None,
    scores: Annotated[str | None, typer.Option(help="Which, as in snip,nwot; default: the recipe's, or all.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Initialisations of each student.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many students.")] = None,
    set_: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="A Parquet file for the table.")] = None,
    name: Name = None,
    storage: Storage = "runs",
    address: Address = None,
) -> None:
    """Score students without training any; which ones says the recipe's first score stage, --all or --arch."""
    overrides = dict(_assignment(text) for text in set_ or [])
    archs = [_architecture(text) for text in arch or []]
    names = [part.strip() for part in scores.split(",")] if scores is not None else None
    _start_ray(address)
    from orchestrator import launch

    how = {"every": every, "archs": archs, "scores": names, "seeds": seeds, "trials": trials}
    _present(launch.launch_scores(recipe, overrides, how, output, _place(storage), name, address, None))


@app.command()
def resume(
    path: RunPath,
    address: Address = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Begin the failed trials of the stage that has not ended again.")
    ] = False,
) -> None:
    """Go on with an interrupted run; nothing that has finished runs again."""
    from orchestrator import launch

    _present(launch.take_up(_place(path), address, None, retry_failed))


@app.command()
def status(
    path: RunPath,
    profile: Annotated[bool, typer.Option("--profile", help="Where the device-time went, too.")] = False,
) -> None:
    """How far a run is, and what has failed."""
    import analysis
    from orchestrator import existing, show

    where, far = _place(path), "://" in path
    held_by: int | str | None
    if far:
        from orchestrator.mirror import held

        held_by = held(where)
    else:
        existing.check_run(where)
        held_by = existing.holder(where)
    results, out = analysis.load(where), show.console()
    out.print(show.status(results, held_by), highlight=False, soft_wrap=far)
    if profile:
        out.print(show.profile(results), highlight=False, soft_wrap=far)


@app.command()
def rank(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's directory or address, or a table of `dux score`.")],
    by: By = None,
    where: Where = None,
    stage: Annotated[str | None, typer.Option(help="Of which stage; default: the last one.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many.")] = None,
    output: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """The students of a run, best first."""
    import analysis
    from orchestrator import show

    if output not in ("table", "csv", "json"):
        raise analysis.BadInput(f"unknown format {output!r}; known: csv, json, table")
    path = _place(run)
    is_run = path.suffix != ".parquet" if "://" in run else path.is_dir() or path.suffix == ".jsonl"
    results = analysis.load(path) if is_run else None
    ranked = results if results is not None else analysis.load_scores(path)
    table = analysis.rank(ranked, by=_weights(by), where=where, stage=stage, top=top)
    if output == "table":
        notes = show.lacking(results if results is not None else path)
        show.console().print(show.ranking(results, table, notes), highlight=False)
    else:
        text = table.to_csv(index=False) if output == "csv" else table.to_json(orient="records", lines=True)
        typer.echo(text, nl=False)


@app.command()
def compare(
    one: RunPath,
    other: RunPath,
    by: Annotated[str, typer.Option(help="The metric to compare by.")] = "valid_accuracy",
) -> None:
    """Two runs side by side: the students that both have, how alike they are ranked, and what either has spent."""
    import analysis
    from orchestrator.plain_values import printable

    for line in analysis.compare(_place(one), _place(other), by).summary().splitlines():
        typer.echo(printable(line))


@app.command()
def report(
    path: RunPath,
    output: Annotated[Path | None, typer.Option(help="A file; default: report.html in the run's directory.")] = None,
) -> None:
    """Write what came out of a run, finished or not, as one HTML file that opens anywhere."""
    from analysis import report

    typer.echo(report.write(_place(path), output))


@app.command()
def export(
    path: RunPath,
    rank: Annotated[int, typer.Option(help="Which student, as `dux rank` orders them by the same words.")] = 1,
    by: By = None,
    where: Where = None,
    format_: Annotated[str, typer.Option("--format", help="safetensors, torch or onnx.")] = "safetensors",
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder; default: named by run, rank and format.")
    ] = None,
) -> None:
    """Write a student to a folder: its weights, or a network that runs without dux, and what others must know of it."""
    run, weights = _place(path), _weights(by)
    from orchestrator import exporting
    from orchestrator.plain_values import printable

    for line in exporting.export(run, rank, format_, output, weights, where).lines:
        typer.echo(printable(line))


LONGEST = 2_000  # characters of a message
KINDS = ("spaces", "scores", "losses", "regimes", "samplers", "schedulers", "recipes", "data")


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS))]) -> None:
    """What can be named in a recipe."""
    from orchestrator import show
    from orchestrator.catalogue import CATALOGUE
    from spaces.errors import unknown

    if kind not in CATALOGUE:
        raise unknown("kind", kind, CATALOGUE)
    show.console().print(show.table_of(CATALOGUE[kind](), kind), highlight=False)


def _place(text: str) -> Any:
    """A path, or an address in an object store."""
    from analysis.remote import place
    from spaces.errors import BadInput

    found = place(text)
    try:
        if isinstance(found, Path):
            found.exists()
    except OSError as error:
        raise BadInput(f"{text!r} can be no path: {error.strerror}") from error
    return found


def _present(results: Any) -> None:
    """The ranked table, where the run lies, and what to type next."""
    import analysis
    from orchestrator import show
    from orchestrator.plain_values import printable

    scored = list(results.stages["trial"])[-1:] == ["score"]
    if scored:
        shown = show.scores(results, analysis.rank_scores(results))
        lies, then = f"its table in {results.path / 'scores.parquet'}", f"{results.path / 'scores.parquet'} --top 20"
    else:
        shown = show.ranking(results, analysis.rank(results), show.lacking(results))
        best = f"its best student in {results.path / 'best'}"
        lies = "replayed from recorded results: nothing was trained" if results.replayed else best
        then = f"{results.path} --by valid_accuracy --where 'params < 10000'"
    out = show.console()
    out.print(shown, highlight=False)
    out.print()
    told = (f"the run lies in {results.path}; {lies}", f"next: dux rank {then}", f"      dux status {results.path}")
    for line in told:
        out.print(printable(line), highlight=False, soft_wrap=True)


def _assignment(text: str, option: str = "--set") -> tuple[str, Any]:
    from spaces.errors import BadInput

    path, sign, value = text.partition("=")
    if not sign or not path:
        raise BadInput(f"{option} takes {'PATH' if option == '--set' else 'NAME'}=VALUE, not {text!r}")
    from orchestrator.plain_values import load

    try:
        return path.strip(), load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"{option} {path}: {value!r} is no YAML value") from error


def _architecture(text: str) -> dict[str, Any]:
    from spaces.errors import BadInput

    choices = [_assignment(part, "--arch") for part in text.split(",")]
    names = [name for name, _ in choices]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--arch {text}: {twice[0]!r} stands twice")
    return dict(choices)


def _start_ray(address: str | None) -> None:
    """Begin with what takes longest, where Ray is to be started."""
    if address is None:
        from orchestrator import cluster

        cluster.start_early()


def _is_replay(recipe: str, overrides: dict[str, Any]) -> bool:
    """Whether a recipe needs no Ray, as far as a look at it tells."""
    path, text = Path(recipe), ""
    with suppress(OSError):  # whatever is wrong with it is told where it is read
        file = path / "recipe.yaml" if path.is_dir() else path
        text = file.read_text(errors="replace") if file.is_file() else ""
    return "\nreplay:" in f"\n{text}" or any(name.partition(".")[0] == "replay" for name in overrides)


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
    with at_the_command_line():
        code = _guarded(lambda: app(standalone_mode=True))
        cluster = sys.modules.get("orchestrator.cluster")
        if cluster is not None and cluster.hangs():
            # Ray has died, and what Python would wait for at its end waits for Ray.
            sys.stdout.flush()
            os._exit(code)
    raise SystemExit(code)


def _guarded(command: Callable[[], Any]) -> int:
    try:
        command()
    except ValueError as error:
        # The one clear line is for what dux itself refuses; anything else is a bug and keeps its traceback.
        if type(error).__name__ != "BadInput":
            raise
        typer.echo(f"dux: {_shown(error)}", err=True)
        return 2
    except Exception as error:
        if type(error).__name__ != "RunFailed":
            raise
        typer.echo(f"dux: {_shown(error)}", err=True)
        return 1
    return 0


def _shown(error: Exception) -> str:
    """One line that can be shown: no secrets, nothing that a terminal would act on, and not without end."""
    from orchestrator.plain_values import printable
    from spaces.redact import redacted

    text = printable(" ".join(redacted(error).split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


if __name__ == "__main__":
    main()

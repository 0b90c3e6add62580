"""The command line: options, progress, exit codes (0 done, 1 cells failed, 2 bad input, 130 interrupted)."""

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from advbench import leaderboard_commands, store_commands
from advbench.errors import AdvbenchError, InputError
from advbench.options import (
    DEFAULT_OUT,
    DEFAULT_STORE,
    DataRoot,
    Names,
    StoreUrl,
    integers,
    make_spec,
    names,
    takes_execution,
    takes_spec,
)

if TYPE_CHECKING:
    from advbench.grid.execution import Execution
    from advbench.grid.plan import Plan
    from advbench.grid.run import Settings
    from advbench.grid.scheduler import Outcome
    from advbench.grid.spec import RunSpec
    from advbench.grid.tasks import Runtime
    from advbench.report import Report
    from advbench.store.records import Store

app = typer.Typer(
    name="advbench",
    help="How robust is this defence, really? A benchmark for randomised and Bayesian defences.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes [default: ...] for markup
)
app.add_typer(store_commands.app)
app.add_typer(leaderboard_commands.app)
LogJson = Annotated[bool, typer.Option("--log-json", help="Tell what happens as lines of JSON, on standard error.")]


@app.command()
@takes_spec
@takes_execution
def run(
    spec: "RunSpec",
    execution: "Execution",
    *,
    out: Annotated[Path, typer.Option(help="Folder for spec, tables and leaderboard.")] = DEFAULT_OUT,
    keep_examples: Annotated[bool, typer.Option("--keep-examples", help="Keep adversarial examples.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    log_json: LogJson = False,
) -> None:
    """Train, attack, judge, and write the leaderboard; what the store already has is not done again."""
    del log_json  # `main` has seen it, so that errors in other options are told so, too
    from advbench.grid.run import Settings, prepare
    from advbench.report.output import check_no_board, check_writable, write_out

    store = execution.open_store()
    plan = prepare(spec, execution.data_root)
    runtime = execution.runtime(spec.dataset, spec.threads, spec.ood)
    check_no_board(out, plan)
    check_writable(out)
    store.check_writable()
    outcome = _carry_out(plan, execution, runtime, store, Settings(keep_examples, retry_failed))
    report, files = write_out(plan, store, outcome, out)
    _print_end(report, files)
    _say(outcome.summary())
    for line in outcome.why(plan.tasks):
        _complain(line)
    missing = int(report.results["flags"].eq("missing").sum())
    if missing:
        _complain(f"warning: {missing} cells have left the store since they were judged; run the same command again")
    if outcome.failed or missing:
        raise typer.Exit(1)


def _carry_out(
    plan: "Plan", execution: "Execution", runtime: "Runtime", store: "Store", settings: "Settings"
) -> "Outcome":
    from advbench.display import make_display
    from advbench.grid.run import carry_out
    from advbench.grid.scheduler import outstanding

    waiting = outstanding(plan, store)
    with make_display(plan.tasks, waiting, as_json=_tells_json()) as display:
        return carry_out(
            plan, waiting, store, lambda: execution.start(runtime, display.moved, display.printed), display, settings
        )


@app.command()
@takes_spec
def plan(
    spec: "RunSpec",
    *,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
    tasks: Annotated[bool, typer.Option("--tasks", help="List every task that has to run.")] = False,
) -> None:
    """Show what a run would do and what it would cost, without doing it."""
    from advbench.describe import plan_lines
    from advbench.grid.run import prepare
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    for line in plan_lines(prepare(spec, data_root), Store(store, BRIEF), every_task=tasks):
        _say(line)


@app.command()
def status(
    *,
    store: StoreUrl = DEFAULT_STORE,
    last: Annotated[int, typer.Option(min=0, help="How many runs that have ended are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON list, for programs.")] = False,
) -> None:
    """Show the runs that use a store, from any terminal or machine that reaches it."""
    import json

    from advbench.status import runs_now, status_lines
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    found = runs_now(Store(store, BRIEF).storage, last)
    if as_json:
        _say(json.dumps(found, indent=1))
        return
    for line in status_lines(found, store):
        _say(line)


@app.command()
@takes_spec
@takes_execution
def curve(
    spec: "RunSpec",
    execution: "Execution",
    *,
    over: Annotated[str, typer.Option(help="The axis: samples, steps, restarts or draws.")],
    values: Annotated[
        Names | None, typer.Option(help="Values along it, comma-separated. [default: the axis's]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for curve.csv and curve.png.")] = DEFAULT_OUT,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    log_json: LogJson = False,
) -> None:
    """Run cells along one axis, at the largest eps, and say where the accuracy falls no more."""
    del log_json
    from advbench.grid.convergence import along
    from advbench.grid.plan import merged
    from advbench.grid.run import Settings, prepare
    from advbench.report import collect
    from advbench.report.curves import trace
    from advbench.report.figures import convergence_curves
    from advbench.report.output import check_writable, drawn
    from advbench.report.tables import to_csv
    from advbench.store.storage import write_file

    store = execution.open_store()
    chosen = along(spec, over, integers(values or [], "--values"))
    plans = [(value, prepare(one, execution.data_root)) for value, one in chosen]
    runtime = execution.runtime(spec.dataset, spec.threads, spec.ood)
    check_writable(out)
    store.check_writable()
    whole = merged([each for _, each in plans])
    outcome = _carry_out(whole, execution, runtime, store, Settings(retry_failed=retry_failed))
    if outcome.failed:
        for line in outcome.why(whole.tasks):
            _complain(line)
        raise typer.Exit(1)
    traced = trace(plans, over, lambda each: collect(each, store))
    files = {"curve.csv": to_csv(traced.table), "curve.png": drawn(convergence_curves(traced), "png")}
    for name, raw in files.items():
        write_file(out / name, raw)
    for line in traced.lines():
        _say(line)
    for name in files:
        _say(str(out / name))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a run.")] = DEFAULT_OUT,
    *,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="csv, md, html, latex, svg, pdf or png, comma-separated. [default: csv,md,html]"),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", help="RobustBench's JSON of a model, or a folder of them, for the page."),
    ] = None,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Write a run's report anew from the store; cells that are not there yet are shown as missing."""
    from advbench.grid.run import prepare_anew
    from advbench.report.output import DEFAULT, check_formats, check_kept, check_writable, collect_anew, write_report
    from advbench.report.references import read_references
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    chosen = names(formats) if formats else DEFAULT
    check_formats(chosen)
    references = read_references(reference or [])
    spec = make_spec(folder / "spec.toml")
    check_writable(folder)
    tables = collect_anew(prepare_anew(spec, folder, data_root), Store(store, BRIEF))
    if tables.results.accuracy.isna().all():
        raise InputError(
            f"store {store!r} has none of this run's results",
            remedy="name the run's store with --store, or compute them: advbench run --spec FOLDER/spec.toml",
        )
    check_kept(folder, tables.results)
    _print_end(tables, write_report(tables, folder, spec, chosen, references))
    if tables.incomplete:
        raise typer.Exit(1)


@app.command()
def plugins() -> None:
    """List what is registered, and plugins that could not be loaded."""
    from advbench.registry import KINDS, registry

    found = registry()
    for kind in KINDS:
        entries = list(found.entries(kind))
        _say(f"{kind}s" if kind != "defense" else "defenses")
        width = max((len(entry.shown) for entry in entries), default=0)
        for entry in entries:
            _say(f"  {entry.shown:<{width}}  {entry.summary}  [{entry.distribution} {entry.version}]")
    for problem in found.problems:
        _complain(f"plugin {problem.plugin!r} of {problem.distribution} failed to load: {problem.reason}")
    duplicates = found.duplicates()
    for error in duplicates:
        _complain(str(error))
    if duplicates:
        raise typer.Exit(2)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A defense or an attack.")]) -> None:
    """Print a plugin's description and hyperparameters: defaults, presets, units and sources."""
    from advbench.describe import plugin_lines

    for line in plugin_lines(name):
        _say(line)


@app.command()
def doctor(*, store: StoreUrl = DEFAULT_STORE, data_root: DataRoot = None) -> None:
    """Check this installation: versions, devices, plugins, store, data."""
    from advbench.describe import doctor_lines

    sound = True
    for good, line in doctor_lines(store, data_root):
        sound &= good
        _say(f"{'ok  ' if good else 'FAIL'}  {line}")
    if not sound:
        raise typer.Exit(1)


def _print_end(report: "Report", files: tuple[Path, ...]) -> None:
    from advbench.report.markdown import main_table

    _say(main_table(report))
    _say("")
    for path in files:
        _say(str(path))
    from advbench.report.flags import FLAGS

    undefined = report.affinity[report.affinity.affinity.isna()]
    if len(undefined):
        _complain(f"warning: {len(undefined)} affinities are undefined (NaN); affinity.csv says why")
    doubtful = int(report.results["flags"].str.contains("|".join(FLAGS)).sum())
    if doubtful:
        _complain(f"warning: {doubtful} cells are to be read with doubt; leaderboard.md says why")


def _say(line: str) -> None:
    typer.echo(line)


def _complain(line: str) -> None:
    if _tells_json():
        from advbench.display import json_line

        kind, _, message = line.partition(": ")
        known = kind in ("error", "warning", "bug")
        typer.echo(json_line(kind if known else "note", message=message if known else line), err=True)
    else:
        typer.echo(line, err=True)


_how: dict[str, bool] = {}


def _tell_as(*, json: bool) -> None:
    """How this call of the command line tells what is not its result."""
    _how["json"] = json


def _tells_json() -> bool:
    return _how.get("json", False)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    _complain("warning: " + " ".join(str(message).split()))


# typer brings its own copy of click or uses the installed one; this is the base class of whichever it is.
_USAGE_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; expected failures become one line and an exit code."""
    _tell_as(json="--log-json" in (sys.argv[1:] if arguments is None else arguments))
    with warnings.catch_warnings(), _termination():
        warnings.showwarning = _show_warning
        code = _run(arguments)
    if code == 130:
        _complain("interrupted; the same command goes on from here")
    return code


@contextmanager
def _termination() -> Iterator[None]:
    """A polite request to end, as batch systems send it, is treated as the keyboard's interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str] | None) -> int:
    try:
        code = app(arguments, standalone_mode=False, prog_name="advbench")
    except _USAGE_ERROR as error:
        _complain("error: " + " ".join(error.format_message().split()))
        return 2
    except AdvbenchError as error:
        _complain(f"error: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130  # some versions of typer raise for an interrupt, others return this code
    except Exception:
        if not _tells_json():
            raise
        _complain(f"bug: {traceback.format_exc()}")
        return 1
    return code if isinstance(code, int) else 0


def script() -> None:
    """The console script."""
    sys.exit(main())

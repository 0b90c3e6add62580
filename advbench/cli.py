"""The command line: options, progress, exit codes (0 done, 1 cells failed, 2 bad input, 130 interrupted)."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from advbench.errors import AdvbenchError, InputError

if TYPE_CHECKING:
    from advbench.config import RunSpec
    from advbench.plan import Plan
    from advbench.report import Report

app = typer.Typer(
    name="advbench",
    help="How robust is this defence, really? A benchmark for randomised and Bayesian defences.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes [default: ...] for markup
)

Names = list[str]
DataRoot = Annotated[str | None, typer.Option(help="Folder that holds the data sets.")]
StoreUrl = Annotated[str, typer.Option("--store", envvar="ADVBENCH_STORE", help="Where results are kept.")]
DEFAULT_STORE = ".advbench/store"
DEFAULT_OUT = Path("results")


def _option(kind: object, flag: str, text: str) -> Any:
    return Annotated[kind, typer.Option(flag, help=text)]


# The options that make a spec, by the name of its field.
SPEC_OPTIONS = {
    "file": _option(Path | None, "--spec", "TOML file with the settings; options override it."),
    "defenses": _option(Names | None, "--defense", "Defenses to train: NAME or NAME@LABEL, comma-separated."),
    "attacks": _option(Names | None, "--attack", "Attacks to run, likewise."),
    "dataset": _option(str | None, "--dataset", "Data set. [default: digits]"),
    "architecture": _option(str | None, "--arch", "Net. [default: the data set's]"),
    "norm": _option(str | None, "--norm", "linf or l2. [default: linf]"),
    "eps": _option(Names | None, "--eps", "Radii, as 0.1 or 8/255, comma-separated. [default: the data set's]"),
    "seeds": _option(Names | None, "--seeds", "Seeds; each trains its own models. [default: 0]"),
    "draws": _option(int | None, "--draws", "Draws that judge a random classifier. [default: 20]"),
    "limit": _option(int | None, "--limit", "Judge on a fixed stratified subset of this many test images."),
    "batch_size": _option(int | None, "--batch-size", "Images attacked and judged together. [default: 256]"),
    "precision": _option(str | None, "--precision", "Of training: float32 or bfloat16. [default: float32]"),
    "threads": _option(int | None, "--threads", "CPU threads of a task. [default: 1]"),
    "sweep": _option(bool | None, "--sweep/--no-sweep", "Attack eps by eps: what a smaller one broke is left alone."),
    "budget": _option(int | None, "--budget", "Most forward passes of an image in an attack. [default: the attack's]"),
    "set": _option(Names | None, "--set", "A hyperparameter: NAME.PARAM=VALUE; repeat for more."),
}


def _takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's first parameter, a spec, by the options that make one."""
    signature = inspect.signature(command)
    own = list(signature.parameters.values())[1:]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        command(_spec(**{name: values.pop(name) for name in SPEC_OPTIONS}), **values)

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in SPEC_OPTIONS.items()
    ]
    wrapped.__signature__ = signature.replace(parameters=[*options, *own])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in [*options, *own]}
    return wrapped


@app.command()
@_takes_spec
def run(
    spec: "RunSpec",
    *,
    data_root: DataRoot = None,
    executor: Annotated[str, typer.Option(help="Where tasks run: inline, in this process.")] = "inline",
    store: StoreUrl = DEFAULT_STORE,
    out: Annotated[Path, typer.Option(help="Folder for spec, tables and leaderboard.")] = DEFAULT_OUT,
    device: Annotated[str | None, typer.Option(help="As cpu or cuda:0. [default: a GPU if there is one]")] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Most images in a net at once; saves memory.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Least time between a training's saves.")] = 30.0,
    keep_examples: Annotated[bool, typer.Option(help="Keep adversarial examples in the store.")] = False,
) -> None:
    """Train, attack, judge, and write the leaderboard; what the store already has is not done again."""
    if executor != "inline":
        raise InputError("--executor", expected="inline", got=repr(executor))
    from advbench.api import Resources
    from advbench.display import make_display
    from advbench.executors.inline import InlineExecutor
    from advbench.run import check_writable, execute, prepare
    from advbench.scheduler import outstanding
    from advbench.store import Store
    from advbench.tasks import Runtime

    opened = Store(store)
    plan = prepare(spec, data_root)
    check_writable(out)
    opened.check_writable()
    runtime = Runtime(
        store, spec.dataset, data_root, Resources(_usable(device), spec.threads, chunk), checkpoint_seconds
    )
    waiting = outstanding(plan, opened)
    with make_display(waiting) as display:
        finished = execute(
            plan,
            waiting,
            opened,
            lambda: InlineExecutor(runtime, display.progressed),
            display,
            out,
            keep_examples=keep_examples,
        )
    _print_end(finished.report, finished.files)
    outcome = finished.outcome
    if outcome.run or outcome.failed:
        _say(f"{len(outcome.run)} tasks run, {len(outcome.skipped)} done before, {len(outcome.failed)} failed")
    else:
        _say(f"nothing to do: all {len(outcome.skipped)} tasks were done before")
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
@_takes_spec
def plan(
    spec: "RunSpec",
    *,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
    tasks: Annotated[bool, typer.Option("--tasks", help="List every task that has to run.")] = False,
) -> None:
    """Show what a run would do and what it would cost, without doing it."""
    from advbench.describe import plan_lines
    from advbench.run import prepare
    from advbench.store import Store

    for line in plan_lines(prepare(spec, data_root), Store(store), every_task=tasks):
        _say(line)


@app.command()
@_takes_spec
def curve(
    spec: "RunSpec",
    *,
    over: Annotated[str, typer.Option(help="The axis: samples, steps, restarts or draws.")],
    values: Annotated[
        Names | None, typer.Option(help="Values along it, comma-separated. [default: the axis's]")
    ] = None,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
    out: Annotated[Path, typer.Option(help="Folder for curve.csv and curve.png.")] = DEFAULT_OUT,
    device: Annotated[str | None, typer.Option(help="As cpu or cuda:0. [default: a GPU if there is one]")] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Most images in a net at once; saves memory.")] = None,
) -> None:
    """Run cells along one axis, at the largest eps, and say where the accuracy falls no more."""
    from advbench.api import Resources
    from advbench.curve import along, trace
    from advbench.display import make_display
    from advbench.executors.inline import InlineExecutor
    from advbench.run import carry_out, check_writable, prepare
    from advbench.scheduler import outstanding
    from advbench.store import Store, write_file
    from advbench.tasks import Runtime

    opened = Store(store)
    chosen = along(spec, over, _integers(values or [], "--values"))
    plans = [(value, prepare(one, data_root)) for value, one in chosen]
    check_writable(out)
    opened.check_writable()
    runtime = Runtime(store, spec.dataset, data_root, Resources(_usable(device), spec.threads, chunk))

    def report_of(plan: "Plan") -> "Report":
        waiting = outstanding(plan, opened)
        with make_display(waiting) as display:
            outcome, found = carry_out(
                plan, waiting, opened, lambda: InlineExecutor(runtime, display.progressed), display
            )
        if outcome.failed:
            raise typer.Exit(1)
        return found

    traced = trace(plans, over, report_of)
    write_file(out / "curve.csv", traced.table.to_csv(index=False, lineterminator="\n").encode())
    traced.figure(out / "curve.png")
    for line in traced.verdicts():
        _say(line)
    for name in ("curve.csv", "curve.png"):
        _say(str(out / name))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a run.")] = DEFAULT_OUT,
    *,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Write a run's tables anew from the store; cells that are not there yet are shown as missing."""
    from advbench.report import collect
    from advbench.run import check_writable, prepare, write_report
    from advbench.store import Store

    spec = _spec(folder / "spec.toml")
    check_writable(folder)
    tables = collect(prepare(spec, data_root), Store(store))
    if tables.results.accuracy.isna().all():
        raise InputError(
            f"store {store!r} has none of this run's results",
            remedy="name the run's store with --store, or compute them: advbench run --spec FOLDER/spec.toml",
        )
    _print_end(tables, write_report(tables, folder))
    if tables.results.accuracy.isna().any():
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


def _spec(file: Path | None, **options: Any) -> "RunSpec":
    from advbench.config import make_spec, parse_settings, parse_toml

    values: dict[str, Any] = {} if file is None else parse_toml(file)
    items = options.pop("set", None)
    readers = {"defenses": _names, "attacks": _names, "eps": _radii, "seeds": _integers}
    for name, value in options.items():
        if value is not None:
            values[name] = readers[name](value) if name in readers else value
    for plugin, params in parse_settings(items or []).items():
        given = values.setdefault("set", {})
        if not isinstance(given, dict) or not isinstance(given.get(plugin, {}), dict):
            raise InputError("setting 'set'", expected="a table for each plugin", got=repr(given))
        given[plugin] = {**given.get(plugin, {}), **params}
    for name, option in (("defenses", "--defense"), ("attacks", "--attack")):
        if not values.get(name):
            raise InputError(f"no {name}", remedy=f"name at least one with {option}; 'advbench plugins' lists them")
    return make_spec(values)


def _usable(device: str | None) -> str:
    """The device, or a GPU if there is one.

    Raises:
        InputError: torch cannot use it.
    """
    import torch

    if device is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            "--device", expected="one that torch can use here, as cpu or cuda:0", got=repr(device)
        ) from error
    return device


def _names(values: Names) -> list[str]:
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def _radii(values: Names) -> list[float]:
    try:
        ratios = [name.split("/") if name.count("/") == 1 else [name, "1"] for name in _names(values)]
        return [float(above) / float(below) for above, below in ratios]
    except (ValueError, ZeroDivisionError) as error:
        raise InputError("--eps", expected="numbers, as 0.1 or 8/255", got=repr(",".join(values))) from error


def _integers(values: Names, option: str = "--seeds") -> list[int]:
    try:
        return [int(name) for name in _names(values)]
    except ValueError as error:
        raise InputError(option, expected="whole numbers", got=repr(",".join(values))) from error


def _print_end(report: "Report", files: tuple[Path, ...]) -> None:
    _say(report.summary())
    _say("")
    for path in files:
        _say(str(path))
    from advbench.report.flags import FLAGS

    undefined = report.affinity[report.affinity.reason != ""]
    if len(undefined):
        _complain(f"warning: {len(undefined)} affinities are undefined (NaN); affinity.csv says why")
    doubtful = int(report.results["flags"].str.contains("|".join(FLAGS)).sum())
    if doubtful:
        _complain(f"warning: {doubtful} cells are to be read with doubt; leaderboard.md says why")


def _say(line: str) -> None:
    typer.echo(line)


def _complain(line: str) -> None:
    typer.echo(line, err=True)


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
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = _run(arguments)
    if code == 130:
        _complain("interrupted; the same command goes on from here")
    return code


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
    return code if isinstance(code, int) else 0


def script() -> None:
    """The console script."""
    sys.exit(main())

"""The commands that run a grid: run, plan, curve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli.options import (
    DEFAULT_OUT,
    DEFAULT_STORE,
    DataRoot,
    Names,
    StoreUrl,
    integers,
    takes_execution,
    takes_spec,
)
from advbench.cli.output import complain, print_end, say, uses_json

if TYPE_CHECKING:
    from advbench.grid.execution import Execution
    from advbench.grid.plan import Plan
    from advbench.grid.run import Settings
    from advbench.grid.scheduler import Outcome
    from advbench.grid.spec import RunSpec
    from advbench.grid.tasks import Runtime
    from advbench.store.records import Store

LogJson = Annotated[bool, typer.Option("--log-json", help="Tell what happens as lines of JSON, on standard error.")]


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
    check_no_board(out)
    check_writable(out)
    store.check_writable()
    outcome = carry_out_shown(plan, execution, runtime, store, Settings(keep_examples, retry_failed))
    report, files = write_out(plan, store, outcome, out)
    print_end(report, files)
    say(outcome.summary())
    for line in outcome.why(plan.tasks):
        complain(line)
    missing = int(report.results["flags"].eq("missing").sum())
    if missing:
        complain(f"warning: {missing} cells have left the store since they were judged; run the same command again")
    if outcome.failed or missing:
        raise typer.Exit(1)


def carry_out_shown(
    plan: "Plan", execution: "Execution", runtime: "Runtime", store: "Store", settings: "Settings"
) -> "Outcome":
    """Carry a plan out behind a display on standard error."""
    from advbench.cli.display import make_display
    from advbench.grid.run import carry_out
    from advbench.grid.scheduler import outstanding

    waiting = outstanding(plan, store)
    with make_display(plan.tasks, waiting, as_json=uses_json()) as display:
        return carry_out(plan, waiting, store, lambda: execution.start(runtime), display, settings)


@takes_spec
def plan(
    spec: "RunSpec",
    *,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
    tasks: Annotated[bool, typer.Option("--tasks", help="List every task that has to run.")] = False,
) -> None:
    """Show what a run would do and what it would cost, without doing it."""
    from advbench.cli.describe import plan_lines
    from advbench.grid.run import prepare
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    for line in plan_lines(prepare(spec, data_root), Store(store, BRIEF), every_task=tasks):
        say(line)


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
    from advbench.report.figures import convergence_curves, to_bytes
    from advbench.report.output import check_writable
    from advbench.report.tables import to_csv
    from advbench.store.storage import write_file

    store = execution.open_store()
    chosen = along(spec, over, integers(values or [], "--values"))
    plans = [(value, prepare(one, execution.data_root)) for value, one in chosen]
    runtime = execution.runtime(spec.dataset, spec.threads, spec.ood)
    check_writable(out)
    store.check_writable()
    whole = merged([each for _, each in plans])
    outcome = carry_out_shown(whole, execution, runtime, store, Settings(retry_failed=retry_failed))
    if outcome.failed:
        for line in outcome.why(whole.tasks):
            complain(line)
        raise typer.Exit(1)
    traced = trace(plans, over, lambda each: collect(each, store))
    files = {"curve.csv": to_csv(traced.table), "curve.png": to_bytes(convergence_curves(traced), "png")}
    for name, raw in files.items():
        write_file(out / name, raw)
    for line in traced.lines():
        say(line)
    for name in files:
        say(str(out / name))

"""The commands that run a grid: run, plan, curve."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli.options import (
    DEFAULT_OUT,
    takes_converging_spec,
    takes_execution,
    takes_spec,
)
from advbench.cli.output import complain, print_end, refuse, say, uses_json

if TYPE_CHECKING:
    from advbench.grid.execution import Execution
    from advbench.grid.plan import Plan
    from advbench.grid.run import Settings
    from advbench.grid.scheduler import Outcome
    from advbench.grid.spec import RunSpec
    from advbench.store.records import Store

RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="retry tasks that failed in a previous run")]
# `main` checks for it itself, so that errors in other options are JSON, too.
LogJson = Annotated[bool, typer.Option("--log-json", help="log events as lines of JSON to standard error")]


@takes_spec
@takes_execution
def run(
    spec: "RunSpec",
    execution: "Execution",
    *,
    out: Annotated[Path, typer.Option(help="folder for spec, tables and leaderboard")] = DEFAULT_OUT,
    keep_examples: Annotated[
        bool, typer.Option("--keep-examples", help="keep adversarial examples in the store")
    ] = False,
    retry_failed: RetryFailed = False,
    log_json: LogJson = False,
) -> None:
    """Train, attack and evaluate defenses, and write the leaderboard; results in the store are reused."""
    del log_json
    from advbench.grid.run import Settings, prepare
    from advbench.report.output import check_no_board, check_writable, write_inputs, write_out

    store = execution.open_store()
    plan = prepare(execution.placed(spec), execution.data_root)
    check_no_board(out)
    check_writable(out)
    store.check_writable()
    write_inputs(plan, out)
    outcome = carry_out_shown(plan, execution, store, Settings(keep_examples, retry_failed), out)
    report, files = write_out(plan, store, outcome, out)
    print_end(report, files)
    say(outcome.summary())
    for line in outcome.why(plan.tasks):
        complain(line)
    missing = int(report.results["flags"].eq("missing").sum())
    if missing:
        complain(
            f"warning: {missing} cells were removed from the store after their evaluation; run the same command again"
        )
    if outcome.failed or missing:
        raise typer.Exit(1)


@contextmanager
def collecting(enabled: bool) -> Iterator[None]:
    """Switch garbage collection on or off in a block.

    It is on while tasks run. Before and after, objects of modules, plans and tables all stay alive, so traversing them
    repeatedly would waste a tenth of the time.
    """
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


def carry_out_shown(
    plan: "Plan",
    execution: "Execution",
    store: "Store",
    settings: "Settings",
    out: Path | None = None,
    for_themselves: Iterable[str] = (),
) -> "Outcome":
    """Execute a plan with a display on standard error, after checking that its output folder and store are writable.

    `for_themselves` are keys of trainings to run even if no other task reads them.
    """
    from advbench.cli.display import Display
    from advbench.grid.run import carry_out
    from advbench.grid.scheduler import outstanding
    from advbench.report.output import check_writable

    runtime = execution.runtime(plan.spec.dataset, plan.spec.threads, plan.spec.ood)
    if plan.spec.precision == "bfloat16" and runtime.resources.device == "cpu" and not _has_bfloat16():
        complain("warning: this CPU has no bfloat16 instructions; float32 is about five times as fast")
    if out is not None:
        check_writable(out)
    store.check_writable()
    waiting = outstanding(plan, store, for_themselves)
    with Display(plan.tasks, waiting, as_json=uses_json()) as display, collecting(True):
        return carry_out(plan, waiting, store, lambda: execution.start(runtime), display, settings)


def _has_bfloat16() -> bool:
    """True if this CPU has bfloat16 instructions, or if torch cannot tell."""
    import torch

    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 and later
    found = [has for name, has in known.items() if "bf16" in name]
    return any(found) or not found


@takes_spec
@takes_execution
def plan(
    spec: "RunSpec",
    execution: "Execution",
    *,
    tasks: Annotated[bool, typer.Option("--tasks", help="list every task to run")] = False,
    out: Annotated[Path, typer.Option(help="as in run; nothing is written")] = DEFAULT_OUT,
    keep_examples: Annotated[bool, typer.Option("--keep-examples", help="as in run; without effect")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="as in run; without effect")] = False,
    log_json: LogJson = False,
) -> None:
    """Show the tasks and cost of a run without running it; takes the options of run."""
    del out, keep_examples, retry_failed, log_json
    from advbench.cli.describe import plan_lines
    from advbench.grid.run import prepare
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    placed = execution.placed(spec) if execution.device or not spec.device else spec
    for line in plan_lines(prepare(placed, execution.data_root), Store(execution.store, BRIEF), every_task=tasks):
        say(line)


@takes_converging_spec
@takes_execution
def curve(
    spec: "RunSpec",
    execution: "Execution",
    *,
    out: Annotated[Path, typer.Option(help="folder for curve.csv and curve.png")] = DEFAULT_OUT,
    retry_failed: RetryFailed = False,
    log_json: LogJson = False,
) -> None:
    """Run attacks to convergence, as `run --converge` does, and report each setting on the way."""
    del log_json
    from advbench.grid.run import Settings, prepare
    from advbench.grid.spec import made_to_converge
    from advbench.report.charts import convergence_curves
    from advbench.report.curves import curve_table, paths
    from advbench.report.figures import draw_chart, to_bytes
    from advbench.report.tables import to_csv
    from advbench.store.storage import write_file

    store = execution.open_store()
    plan = prepare(execution.placed(made_to_converge(spec)), execution.data_root)
    outcome = carry_out_shown(plan, execution, store, Settings(retry_failed=retry_failed), out)
    if outcome.failed:
        refuse(outcome.why(plan.tasks))
    found = list(paths(plan, store))
    table = curve_table(plan, found)
    files = {"curve.csv": to_csv(table), "curve.png": to_bytes(draw_chart(convergence_curves(table)), "png")}
    for name, raw in files.items():
        write_file(out / name, raw)
    for line in (*(path.line() for path in found), *(out / name for name in files)):
        say(line)

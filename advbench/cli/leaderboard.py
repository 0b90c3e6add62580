"""The commands `advbench leaderboard ...`: build, check, submit, merge, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli.options import DEFAULT_STORE, DataRoot, StoreUrl, names, takes_execution
from advbench.cli.run import carry_out_shown
from advbench.errors import InputError

if TYPE_CHECKING:
    from advbench.boards.findings import Findings
    from advbench.grid.execution import Execution
    from advbench.grid.plan import Plan
    from advbench.store.records import Store

app = typer.Typer(
    name="leaderboard",
    help="Make, check and extend boards: folders of results that are published.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
BoardFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The board: a folder with spec.toml and results.csv.")]


@app.command()
def build(
    folder: BoardFolder,
    *,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Results of others to show beside: RobustBench's JSON, a file or folder; it is copied."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Also draw the tables: latex, svg, pdf or png, comma-separated."),
    ] = None,
) -> None:
    """Make a board's README.md and index.html anew from its spec and tables."""
    from advbench.boards import build as make
    from advbench.boards import load_board
    from advbench.report.output import DRAWN, check_formats, write_report

    chosen = names(formats or [])
    check_formats(chosen, DRAWN)
    for path in make(folder, reference or ()):
        typer.echo(str(path))
    if chosen:
        board = load_board(folder)
        for path in write_report(board.report, folder, board.spec, chosen):
            typer.echo(str(path))


@app.command()
@takes_execution
def check(
    folder: BoardFolder,
    execution: "Execution",
    *,
    rerun: Annotated[
        int, typer.Option(min=0, help="How many cells, chosen at random, are computed anew and compared.")
    ] = 0,
    rerun_seed: Annotated[
        int | None, typer.Option(help="Of the choice of cells. [default: nobody can foresee it]")
    ] = None,
) -> None:
    """Check that a board's pages follow from its tables and that its tables can be true; exit code 1 if not.

    Keys follow from the spec, the data's SHA-256 and the versions; intervals, retention and affinity from
    accuracies; flags from intervals. Only --rerun computes: in a store of its own, which is dropped.
    """
    from advbench.boards.check import check as examine
    from advbench.boards.rerun import rerun as again

    checked = examine(folder, execution.data_root)
    _refuse(checked.findings)
    board, plan = checked.board, checked.plan
    missing = int(board.results.accuracy.isna().sum())
    told = [f"{len(plan.cells)} rows of {len(board.spec.defenses)} defenses"]
    told += [f"{missing} of them without a result"] if missing else []
    told += [] if checked.dataset else ["the data set was not at hand"]
    if rerun:
        done = again(board, rerun, execution, checked.findings, _compute, typer.echo, rerun_seed)
        _refuse(checked.findings)
        told.append(f"{done.cells} cells computed anew, {done.equal} of them equal to the last digit")
    typer.echo(f"sound: {', '.join(told)}")


def _compute(part: "Plan", execution: "Execution", store: "Store") -> dict[str, str]:
    """Say what a plan costs, and carry it out; returns why tasks failed, by key."""
    from advbench.cli.describe import plan_lines
    from advbench.grid.run import Settings

    typer.echo(f"computing {len(part.cells)} cells anew:")
    for line in plan_lines(part, store, every_task=False):
        typer.echo(line)
    runtime = execution.runtime(part.spec.dataset, part.spec.threads)
    return carry_out_shown(part, execution, runtime, store, Settings()).failed


@app.command()
def submit(
    run_dir: Annotated[Path, typer.Argument(help="The --out folder of a run under the board's settings.")],
    *,
    defense: Annotated[str, typer.Option(help="The defense to submit, as the run calls it.")],
    out: Annotated[Path | None, typer.Option(help="The file to write. [default: LABEL.advbench.zip]")] = None,
    models: Annotated[bool, typer.Option("--models", help="With the weights of trainings.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Pack one defense of a run, its records and predictions, into a file for whoever keeps a board."""
    from advbench.boards.findings import Findings
    from advbench.boards.submission import submit as pack
    from advbench.store.records import Store

    done = pack(run_dir, defense, Store(store), out, models=models, force=force, data_root=data_root)
    if isinstance(done, Findings):
        _refuse(done)
        return
    typer.echo(f"{done.path}: {done.cells} rows, {done.records} records, {done.size:,} bytes")


@app.command()
def merge(
    folder: BoardFolder,
    file: Annotated[Path, typer.Argument(help="What 'advbench leaderboard submit' wrote.")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a defense of the same label.")] = False,
    data_root: DataRoot = None,
) -> None:
    """Add a submission to a board; refused with exit code 1, and nothing written, where anything is wrong with it.

    A merge that was cut off goes on when the same command runs again.
    """
    from advbench.boards.findings import Findings
    from advbench.boards.merge import merge as add

    done = add(folder, file, replacing=replace, data_root=data_root)
    if isinstance(done, Findings):
        _refuse(done)
        return
    ended = "a merge that was cut off is finished: " if done.finished else ""
    typer.echo(f"{ended}{done.label}: {done.rows} rows added, {done.missing} with other defenses are missing")


@app.command()
def export(
    folder: BoardFolder,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    format: Annotated[str, typer.Option(help="robustbench: a model_info for each defense.")] = "robustbench",  # noqa: A002
) -> None:
    """Write a board's results as other leaderboards keep theirs."""
    from advbench.boards import load_board
    from advbench.report.references import write_model_infos

    if format != "robustbench":
        raise InputError("--format", expected="robustbench", got=repr(format))
    board = load_board(folder)
    for path in write_model_infos(board.report, board.spec, out).values():
        typer.echo(str(path))


def _refuse(findings: "Findings") -> None:
    """End with exit code 1 and a line for each kind of finding, if there is any."""
    if findings:
        for line in findings.lines():
            typer.echo(line, err=True)
        raise typer.Exit(1)

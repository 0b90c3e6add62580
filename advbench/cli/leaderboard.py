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
BoardFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The board: a folder with spec.toml, data.json and records.")
]


@app.command()
def build(
    folder: BoardFolder,
    *,
    store: Annotated[
        str | None, typer.Option("--store", help="Store whose results of the board's spec are taken into it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the board's page. [default: no page]")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Results of others to show beside: RobustBench's JSON, a file or folder; it is copied."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Files in --out: html, latex, svg, pdf or png, comma-separated. [default: html]"),
    ] = None,
) -> None:
    """Make a board's tables and README from its records, and its page in another folder."""
    from advbench.boards.board import build as make
    from advbench.report.output import check_formats, check_writable, write_report
    from advbench.store.records import Store

    chosen = names(formats) if formats else ["html"]
    check_formats(chosen)
    if formats and out is None:
        raise InputError("--format", expected="--out with it, the folder for those files")
    board = make(folder, None if store is None else Store(store), reference or ())
    for name in ("records.jsonl.gz", *board.files()):
        typer.echo(str(folder / name))
    if out is not None:
        check_writable(out)
        for path in write_report(board.report, out, chosen, board.references(), about=board.about):
            typer.echo(str(path))
    if board.missing:
        typer.echo(f"{board.missing} cells of the spec have no record", err=True)


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
        int | None, typer.Option(help="Seed of the choice of cells. [default: nobody can foresee it]")
    ] = None,
) -> None:
    """Check that a board's keys follow from its spec, and tables and README from its records; exit code 1 if not.

    The data set is not needed. Only --rerun computes, in a store of its own, which is dropped.
    """
    from advbench.boards.check import check as examine
    from advbench.boards.rerun import rerun as again

    board, findings = examine(folder)
    _refuse(findings)
    cells = len(board.plan.cells) + len(board.plan.ood)
    found = [f"{cells - board.missing:,} of {cells:,} cells of {len(board.spec.defenses)} defenses"]
    if rerun:
        done = again(board, rerun, execution, findings, _compute, rerun_seed)
        _refuse(findings)
        found.append(f"{done.cells} cells computed anew, {done.equal} of them equal to the last digit")
    typer.echo(f"ok: {', '.join(found)}")


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
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Pack the records of one defense of a run into a file, for whoever keeps a board."""
    from advbench.boards.findings import Findings
    from advbench.boards.submission import submit as pack
    from advbench.store.records import Store

    done = pack(run_dir, defense, Store(store), out, force=force, data_root=data_root)
    if isinstance(done, Findings):
        _refuse(done)
        return
    typer.echo(f"{done.path}: {done.records} records, {done.size:,} bytes")


@app.command()
def merge(
    folder: BoardFolder,
    file: Annotated[Path, typer.Argument(help="What 'advbench leaderboard submit' wrote.")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a defense of the same label.")] = False,
) -> None:
    """Add a submission to a board; refused with exit code 1, and nothing written, where anything is wrong."""
    from advbench.boards.findings import Findings
    from advbench.boards.merge import merge as add

    done = add(folder, file, replacing=replace)
    if isinstance(done, Findings):
        _refuse(done)
        return
    missing = f", {done.missing} cells of the board are missing" if done.missing else ""
    typer.echo(f"{done.label}: {done.records} records added{missing}")


@app.command()
def export(
    folder: BoardFolder,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    format: Annotated[str, typer.Option(help="robustbench: a model_info for each defense.")] = "robustbench",  # noqa: A002
) -> None:
    """Write a board's results as other leaderboards keep theirs."""
    from advbench.boards.board import read_board
    from advbench.report.references import write_model_infos

    if format != "robustbench":
        raise InputError("--format", expected="robustbench", got=repr(format))
    board = read_board(folder)
    for path in write_model_infos(board.report, board.spec, out).values():
        typer.echo(str(path))


def _refuse(findings: "Findings") -> None:
    """End with exit code 1 and a line for each kind of finding, if there is any."""
    if findings:
        for line in findings.lines():
            typer.echo(line, err=True)
        raise typer.Exit(1)

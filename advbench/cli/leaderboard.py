"""The commands `advbench leaderboard ...`: build, check, submit, merge, export, site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli.options import DEFAULT_STORE, DataRoot, Force, References, StoreUrl, names, takes_execution
from advbench.cli.output import complain, refuse, say
from advbench.cli.run import carry_out_shown
from advbench.errors import InputError

if TYPE_CHECKING:
    from advbench.grid.execution import Execution
    from advbench.grid.plan import Plan
    from advbench.store.records import Store

app = typer.Typer(
    name="leaderboard",
    help="Build, check and extend boards, which are published folders of results.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
BoardFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="board: a folder with spec.toml, data.json and records.jsonl.gz")
]


@app.command()
def build(
    folder: BoardFolder,
    *,
    store: Annotated[
        str | None, typer.Option("--store", help="store with results of the board's spec to add [default: none]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the board's page [default: no page]")] = None,
    reference: References = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="formats in --out, comma-separated: html, latex, svg, pdf, png [default: html]"),
    ] = None,
) -> None:
    """Write a board's tables and README from its records, and its page into another folder."""
    from advbench.boards.board import build as make
    from advbench.report.output import check_formats, check_writable, day, write_report
    from advbench.store.records import Store

    chosen = names(formats) if formats else ["html"]
    check_formats(chosen)
    if formats and out is None:
        raise InputError("--format", expected="--out as well, the folder for those files")
    board = make(folder, None if store is None else Store(store), reference or ())
    for name in ("records.jsonl.gz", *board.files()):
        say(folder / name)
    if out is not None:
        check_writable(out)
        named = {"about": board.about, "date": day(), "board": folder.resolve().name}
        for path in write_report(board.report, out, chosen, board.references(), **named):
            say(path)
    if board.missing:
        complain(f"{_count(board.missing, 'cell')} of the spec {'has' if board.missing == 1 else 'have'} no record")


@app.command()
def site(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder with boards, at any depth")],
    *,
    out: Annotated[Path, typer.Option(help="folder for the site, outside DIR")],
) -> None:
    """Write a site of all boards below a folder: an index, and each board's page, spec and tables.

    Every board is checked first, as by 'advbench leaderboard check'. If one fails, nothing is written and the exit code
    is 1. Nothing is computed and no code of a board is run.
    """
    from advbench.boards.check import Findings
    from advbench.boards.site import site_files
    from advbench.report.output import check_writable, day
    from advbench.store.storage import write_file

    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"output folder {out}", expected=f"one outside {folder}", remedy="choose another with --out")
    files = site_files(folder, day())
    if isinstance(files, Findings):
        refuse(files.lines())
        return
    check_writable(out)
    for name, raw in files.items():  # the index comes last, so that it leads to whole pages alone
        write_file(out / name, raw)
        say(out / name)


@app.command()
@takes_execution
def check(
    folder: BoardFolder,
    execution: "Execution",
    *,
    rerun: Annotated[int, typer.Option(min=0, help="number of randomly chosen cells to recompute and compare")] = 0,
    rerun_seed: Annotated[int | None, typer.Option(help="seed of that choice [default: unpredictable]")] = None,
    run_files: Annotated[
        bool, typer.Option("--run-files", help="import and run the Python files in the board, with --rerun")
    ] = False,
) -> None:
    """Check that a board's keys match its spec, and its tables and README its records; exit code 1 if not.

    The data set is not needed. Only --rerun computes anything, in a temporary store. Only --run-files imports files of
    the board, which can execute arbitrary code: read them first.
    """
    from advbench.boards.check import check as examine
    from advbench.boards.rerun import rerun as recompute

    for option, given in (("--run-files", run_files), ("--rerun-seed", rerun_seed is not None)):
        if given and not rerun:
            raise InputError(option, expected="--rerun as well, the number of cells to recompute")
    board, findings = examine(folder)
    refuse(findings.lines(advice=True))
    cells = len(board.cells)
    found = f"{cells - board.missing:,} of {_count(cells, 'cell')} of {_count(len(board.spec.defenses), 'defense')}"
    if rerun:
        done = recompute(board, rerun, execution, findings, _compute, rerun_seed, run_files=run_files)
        refuse(findings.lines())
        found += f", {_count(done.cells, 'cell')} recomputed, {done.equal} of them equal to the last digit"
        if done.left_out:
            found += f"; {_count(done.left_out, 'cell')} left out: {'; '.join(done.reasons)}"
    say(f"ok: {found}")


def _compute(part: "Plan", execution: "Execution", store: "Store") -> dict[str, str]:
    """Print the cost of a plan and execute it; return the reasons of failed tasks, by key."""
    from advbench.cli.describe import plan_lines
    from advbench.grid.run import Settings

    for line in (f"recomputing {len(part.evaluations)} cells:", *plan_lines(part, store, every_task=False)):
        say(line)
    return carry_out_shown(part, execution, store, Settings()).failed


@app.command()
def submit(
    run_dir: Annotated[Path, typer.Argument(help="--out folder of a run with the board's settings")],
    *,
    defense: Annotated[str, typer.Option(help="label of the defense in the run")],
    out: Annotated[Path | None, typer.Option(help="file to write [default: LABEL.advbench.zip]")] = None,
    force: Force = False,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Pack the records of one defense of a run into a file, for the maintainers of a board."""
    from advbench.boards.check import Findings
    from advbench.boards.submission import submit as pack
    from advbench.store.records import Store

    done = pack(run_dir, defense, Store(store), out, force=force, data_root=data_root)
    if isinstance(done, Findings):
        refuse(done.lines())
    else:
        say(f"{done.path}: {done.records} records, {done.path.stat().st_size:,} bytes")


@app.command()
def merge(
    folder: BoardFolder,
    file: Annotated[Path, typer.Argument(help="file written by 'advbench leaderboard submit'")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="replace a defense of the same label")] = False,
) -> None:
    """Add a submission to a board; if any check fails, nothing is written and the exit code is 1."""
    from advbench.boards.check import Findings
    from advbench.boards.merge import merge as add

    done = add(folder, file, replacing=replace)
    if isinstance(done, Findings):
        refuse(done.lines())
    else:
        parts = [f"{done.label}: {done.records} records added"]
        if done.own:
            rank = "" if done.ranked else ", so it has no rank"
            are = "is" if len(done.own) == 1 else "are"
            places = list(dict.fromkeys(done.own))  # each once for all seeds
            first = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
            parts.append(f"{len(done.own)} of its own cells {are} missing ({first}){rank}")
        if done.transfers:
            until = "until the board's spec is run again"
            parts.append(f"{_count(done.transfers, 'transfer')} between it and others missing {until}")
        if done.others:
            parts.append(f"{_count(done.others, 'cell')} of other defenses missing")
        say("; ".join(parts))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


@app.command()
def export(
    folder: BoardFolder,
    *,
    out: Annotated[Path, typer.Option(help="folder for the files")],
    format: Annotated[str, typer.Option(help="format: robustbench (a model_info per defense)")] = "robustbench",  # noqa: A002
) -> None:
    """Write a board's results in the format of another leaderboard."""
    from advbench.boards.board import read_board
    from advbench.report.references import write_model_infos

    if format != "robustbench":
        raise InputError("--format", expected="robustbench", got=repr(format))
    board = read_board(folder)
    for path in write_model_infos(board.report, board.spec, out).values():
        say(path)

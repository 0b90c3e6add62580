"""The command `advbench reproduce`, for tables and figures of papers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli.options import takes_execution
from advbench.cli.output import complain, refuse, say
from advbench.cli.run import RetryFailed, carry_out_shown
from advbench.errors import InputError

if TYPE_CHECKING:
    from advbench.boards.board import Board
    from advbench.boards.comparison import Comparison
    from advbench.boards.studies import Study
    from advbench.grid.execution import Execution

OUT = Path("papers")


@takes_execution
def reproduce(
    execution: "Execution",
    title: Annotated[
        str | None, typer.Argument(metavar="PAPER/ITEM", help="table or figure of a paper, such as apd/table1")
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--list", help="list all items with their scales, requirements and results")
    ] = False,
    scale: Annotated[
        str, typer.Option(help="scale: paper (the paper's own settings) or small (reduced for two CPU cores)")
    ] = "small",
    out: Annotated[Path, typer.Option(help="folder of results, stored as boards in OUT/PAPER/ITEM/SCALE")] = OUT,
    check: Annotated[
        bool,
        typer.Option("--check", help="check results in --out instead of computing them; exit code 1 if a check fails"),
    ] = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Reproduce a table or figure of a paper, and compare the numbers with the published ones."""
    from advbench.boards.comparison import MEASURED, compare, measure, needs_examples, read_measured
    from advbench.boards.studies import find_item, publish, read_study, take_over
    from advbench.grid.run import Settings, prepare
    from advbench.store.storage import write_file

    if everything:
        for line in _listed(out):
            say(line)
        return
    if title is None:
        raise InputError("no study", remedy="give one, such as apd/table1; 'advbench reproduce --list' shows all")
    item = find_item(title)
    if item.missing:
        raise InputError(
            f"study {title}", expected="a study that advbench can run", got=f"one that needs {item.missing}"
        )
    study = read_study(item, scale)
    folder = out / study.item.paper / study.item.name / scale
    if check:
        _show(_checked(study, folder))
        return
    store = execution.open_store()
    settings = Settings(needs_examples(study), retry_failed)
    boards: dict[str, Board] = {}
    failed: list[str] = []
    for name, spec in study.parts.items():
        if len(study.parts) > 1:
            complain(f"part {name}")
        plan = prepare(execution.placed(spec), execution.data_root)
        take_over(folder / name, plan, store)
        outcome = carry_out_shown(plan, execution, store, settings, folder / name)
        failed += outcome.why(plan.tasks)
        boards[name] = publish(folder / name, plan, study, store)
        # Also of the parts that are done, if a later one is interrupted.
        comparison = compare(study, boards, measure(study, boards, execution.store, read_measured(folder / MEASURED)))
        for file, raw in comparison.files().items():
            write_file(folder / file, raw)
    _show(comparison)
    say(folder / "comparison.md")
    refuse(failed)


def _checked(study: "Study", folder: Path) -> "Comparison":
    """Comparison of existing results, after checks of the boards, their specs and the comparison's files."""
    from advbench.boards.check import check as examine
    from advbench.boards.comparison import MEASURED, compare, measure, read_measured

    boards, problems = {}, []
    done = {name: spec for name, spec in study.parts.items() if (folder / name).is_dir()}
    for name, spec in (done or study.parts).items():
        board, findings = examine(folder / name)
        problems += [f"{folder / name}: {line}" for line in findings.lines()]
        if board.spec.model_copy(update={"device": spec.device}) != spec:
            problems.append(f"{folder / name}: its spec is not that of {study.item.title} at scale {study.scale}")
        boards[name] = board
    refuse(problems)
    comparison = compare(study, boards, measure(study, boards, "memory://", read_measured(folder / MEASURED)))
    for name, raw in comparison.files().items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != raw:
            problems.append(f"{path}: missing, or does not match the records")
    refuse(problems)
    return comparison


def _show(comparison: "Comparison") -> None:
    """Print a comparison: one line per number, and the verdict."""
    from tabulate import tabulate

    table = comparison.table
    shown = table[["part", "method", "condition", "metric", "published", "own", "own_low", "own_high", "verdict"]]
    rows = shown.astype(object).where(shown.notna(), "").to_numpy().tolist()
    text = tabulate(rows, [str(name) for name in shown], floatfmt=".4g")
    for line in text.splitlines():
        say(line)
    say("")
    say(comparison.summary())


def _listed(out: Path) -> Iterator[str]:
    """One line per item of all papers, and the number of items with results."""
    from tabulate import tabulate

    from advbench.boards.studies import all_items, read_study

    rows = []
    for item in all_items():
        scales = item.scales or ["paper"]
        study = read_study(item, scales[0])
        results = []
        for scale in item.scales:
            path = out / item.paper / item.name / scale / "comparison.md"
            if path.is_file():
                results.append(f"{scale}: {path.read_text().split('**')[1]}")
        rows.append(
            [item.title, study.file.title, ", ".join(item.scales) or "none", ", ".join(study.needs), *results[:1]]
        )
    headers = ["item", "shows", "scales", "needs", "results"]
    yield from tabulate([[*row, ""][:5] for row in rows], headers=headers).splitlines()
    yield ""
    yield f"{len(rows)} items, {sum(row[2] != 'none' for row in rows)} of which can be run; results in {out}"

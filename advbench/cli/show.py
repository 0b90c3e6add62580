"""The commands that show what is there: report, status, plugins, show, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.options import DEFAULT_OUT, DEFAULT_STORE, DataRoot, StoreUrl, make_spec, names
from advbench.cli.output import complain, print_end, say
from advbench.errors import InputError


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
    from advbench.report.output import (
        DEFAULT,
        check_formats,
        check_kept,
        check_no_board,
        check_writable,
        collect_anew,
        write_report,
    )
    from advbench.report.references import read_references
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    chosen = names(formats) if formats else DEFAULT
    check_formats(chosen)
    references = read_references(reference or [])
    spec = make_spec(folder / "spec.toml")
    check_no_board(folder)
    check_writable(folder)
    tables = collect_anew(prepare_anew(spec, folder, data_root), Store(store, BRIEF))
    if tables.results.accuracy.isna().all():
        raise InputError(
            f"store {store!r} has none of this run's results",
            remedy="name the run's store with --store, or compute them: advbench run --spec FOLDER/spec.toml",
        )
    check_kept(folder, tables.results)
    print_end(tables, write_report(tables, folder, chosen, references))
    if tables.incomplete:
        raise typer.Exit(1)


def status(
    *,
    store: StoreUrl = DEFAULT_STORE,
    last: Annotated[int, typer.Option(min=0, help="How many runs that have ended are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON list, for programs.")] = False,
) -> None:
    """Show the runs that use a store, from any terminal or machine that reaches it."""
    import json

    from advbench.cli.status import runs_now, status_lines
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    found = runs_now(Store(store, BRIEF).storage, last)
    if as_json:
        say(json.dumps(found, indent=1))
        return
    for line in status_lines(found, store):
        say(line)


def plugins() -> None:
    """List what is registered, and plugins that could not be loaded."""
    from advbench.registry import KINDS, registry

    found = registry()
    for kind in KINDS:
        entries = list(found.entries(kind))
        say(f"{kind}s" if kind != "defense" else "defenses")
        width = max((len(entry.shown) for entry in entries), default=0)
        for entry in entries:
            say(f"  {entry.shown:<{width}}  {entry.summary}  [{entry.distribution} {entry.version}]")
    for problem in found.problems:
        complain(f"plugin {problem.plugin!r} of {problem.distribution} failed to load: {problem.reason}")
    duplicates = found.duplicates()
    for error in duplicates:
        complain(str(error))
    if duplicates:
        raise typer.Exit(2)
    if found.problems:
        raise typer.Exit(1)


def show(name: Annotated[str, typer.Argument(help="A defense or an attack.")]) -> None:
    """Print a plugin's description and hyperparameters: defaults, presets, units and sources."""
    from advbench.cli.describe import plugin_lines

    for line in plugin_lines(name):
        say(line)


def doctor(*, store: StoreUrl = DEFAULT_STORE, data_root: DataRoot = None) -> None:
    """Check this installation: versions, devices, plugins, store, data."""
    from advbench.cli.describe import doctor_lines

    sound = True
    for good, line in doctor_lines(store, data_root):
        sound &= good
        say(f"{'ok  ' if good else 'FAIL'}  {line}")
    if not sound:
        raise typer.Exit(1)

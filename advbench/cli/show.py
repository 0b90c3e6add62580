"""The commands report, status, plugins, show, doctor."""

import json
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.options import DEFAULT_OUT, DEFAULT_STORE, DataRoot, References, StoreUrl, make_spec, names
from advbench.cli.output import complain, print_end, say
from advbench.errors import InputError


def report(
    folder: Annotated[Path, typer.Argument(help="--out folder of a run")] = DEFAULT_OUT,
    *,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="formats, comma-separated: csv, md, html, latex, svg, pdf, png [default: csv,md,html]"
        ),
    ] = None,
    reference: References = None,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Write a run's report again from the store; missing cells are marked."""
    from advbench.grid.run import prepare_anew
    from advbench.report import output
    from advbench.report.references import read_references
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    chosen = names(formats) if formats else output.DEFAULT
    output.check_formats(chosen)
    references = read_references(reference or [])
    spec = make_spec(folder / "spec.toml")
    output.check_no_board(folder)
    output.check_writable(folder)
    tables = output.collect_anew(prepare_anew(spec, folder, data_root), Store(store, BRIEF))
    if tables.results["flags"].eq("missing").all():
        raise InputError(
            f"store {store!r} has no results of this run",
            remedy="choose the run's store with --store, or compute them: advbench run --spec FOLDER/spec.toml",
        )
    output.check_kept(folder, tables.results)
    files = output.write_report(tables, folder, chosen, references)
    print_end(tables, files)
    if tables.incomplete:
        raise typer.Exit(1)


def status(
    *,
    store: StoreUrl = DEFAULT_STORE,
    last: Annotated[int, typer.Option(min=0, help="number of ended runs to show")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, for programs")] = False,
) -> None:
    """Show the runs that use a store, from any machine that can access it."""
    from advbench.cli.status import runs_now, status_lines
    from advbench.store.records import Store
    from advbench.store.storage import BRIEF

    found = runs_now(Store(store, BRIEF).storage, last)
    if as_json:
        shown = [run.model_dump(mode="json", exclude={"measured"}, exclude_unset=True) for run in found]
        for line in json.dumps(shown, indent=1).splitlines():
            say(line)
        return
    for line in status_lines(found, store):
        say(line)


def plugins() -> None:
    """List all registered names, and the plugins that failed to load."""
    from advbench.registry import KINDS, registry

    found = registry()
    for kind in KINDS:
        entries = list(found.entries(kind))
        say(f"{kind}s" if kind != "defense" else "defenses")
        width = max((len(entry.shown) for entry in entries), default=0)
        for entry in entries:
            say(f"  {entry.shown:<{width}}  {entry.summary}  [{entry.distribution} {entry.version}]")
    duplicates = found.duplicates()
    for problem in (*found.problems, *duplicates):
        complain(str(problem))
    if duplicates or found.problems:
        raise typer.Exit(2 if duplicates else 1)


def show(name: Annotated[str, typer.Argument(help="registered name: a defense, attack, net or data set")]) -> None:
    """Print the description of a name, with hyperparameters of defenses and attacks: defaults, presets and units."""
    from advbench.cli.describe import plugin_lines

    for line in plugin_lines(name):
        say(line)


def doctor(
    *,
    store: StoreUrl = DEFAULT_STORE,
    data_root: DataRoot = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="check a GPU with all trainings and attacks")] = False,
    device: Annotated[str, typer.Option(help="GPU to check with --gpu")] = "cuda:0",
) -> None:
    """Check this installation: versions, devices, plugins, store and data; or with --gpu, results on a GPU."""
    from advbench.cli.describe import doctor_lines

    if gpu:
        from advbench.grid.selftest import selftest

        lines = selftest(device)
    else:
        lines = doctor_lines(store, data_root)
    passed = True
    for ok, line in lines:
        passed &= ok
        say(f"{'ok  ' if ok else 'FAIL'}  {line}")
    if not passed:
        raise typer.Exit(1)

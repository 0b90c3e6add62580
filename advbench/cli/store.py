"""The commands `advbench store ...`: verify, gc, export, import."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from advbench.cli.options import DEFAULT_STORE, DataRoot, Force, StoreUrl, make_spec
from advbench.cli.output import complain, refuse, say
from advbench.errors import InputError

app = typer.Typer(
    name="store", help="Check, clean, pack and unpack a store of results.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def verify(
    *,
    store: StoreUrl = DEFAULT_STORE,
    no_models: Annotated[bool, typer.Option("--no-models", help="allow weights of trainings to be missing")] = False,
) -> None:
    """Read and check all files of a store; exit code 1 if any is damaged or missing.

    Prints one line per damaged, unreadable or missing file. Artifacts without a record, records of another schema,
    and unknown files are also listed, but do not count as damage.
    """
    from advbench.store.gc import Amount
    from advbench.store.records import Store
    from advbench.store.verify import verify as findings

    amounts: dict[str, Amount] = {}
    damaged = 0
    for found in findings(Store(store), models=not no_models):
        if found.problem != "missing":
            amounts.setdefault(found.sort, Amount()).add(found.size)
        if found.problem:
            say(found)
        damaged += found.damage
    if not amounts:
        raise InputError(f"store {store!r} is empty", remedy="choose another with --store")
    for sort, amount in amounts.items():
        say(f"{sort}: {amount.count}, {decimal(amount.size)}")
    say(f"{damaged} damaged or missing" if damaged else "all ok")
    if damaged:
        raise typer.Exit(1)


@app.command()
def gc(
    *,
    store: StoreUrl = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only report what would be removed")] = False,
    keep_examples: Annotated[bool, typer.Option("--keep-examples", help="keep adversarial examples")] = False,
    failures: Annotated[bool, typer.Option("--failures", help="also remove stored reasons of failed tasks")] = False,
) -> None:
    """Remove files that are no longer needed; refused while a run uses the store.

    These are adversarial examples, artifacts without a record, damaged files, checkpoints of finished trainings,
    leases, temporary files, and heartbeats of all but the last 20 runs.
    """
    from advbench.store.gc import collect_garbage
    from advbench.store.records import Store

    amounts = collect_garbage(Store(store), dry_run=dry_run, keep_examples=keep_examples, failures=failures)
    for what, amount in amounts.items():
        say(f"{'would remove' if dry_run else 'removed'} {amount.count} {what}, {decimal(amount.size)}")
    if not amounts:
        say("nothing to remove")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="file to write, NAME.tar, NAME.tar.gz or NAME.tgz")],
    *,
    run: Annotated[
        Path | None, typer.Option("--run", help="--out folder of a run, to pack only its results [default: all]")
    ] = None,
    no_models: Annotated[bool, typer.Option("--no-models", help="leave out the weights of trainings")] = False,
    examples: Annotated[bool, typer.Option("--examples", help="include stored adversarial examples")] = False,
    force: Force = False,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Pack records and their artifacts into one file, for another store."""
    from advbench.store.archive import export as pack
    from advbench.store.records import Store

    keys: Collection[str] | None = None
    if run is not None:
        from advbench.grid.run import prepare_anew

        keys = prepare_anew(make_spec(run / "spec.toml"), run, data_root).tasks.keys()
    packed = pack(Store(store), file, keys, models=not no_models, examples=examples, force=force)
    if keys is not None and packed.absent:
        complain(f"warning: {packed.absent} of the run's {len(keys)} tasks have no record yet")
    say(f"{file}: {packed.records} records, {packed.artifacts} artifacts, {decimal(packed.size)}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="file written by 'advbench store export'")],
    *,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Add the content of an export to a store; exit code 1 if an existing record differs, which is kept."""
    from advbench.store.archive import import_ as unpack
    from advbench.store.records import Store

    done = unpack(Store(store), file)
    say(
        f"{done.records} records and {done.artifacts} artifacts added, {done.known} records known, "
        f"{len(done.conflicts)} conflicts"
    )
    refuse(f"conflict: record {key} differs from that of the store, which is kept" for key in done.conflicts)

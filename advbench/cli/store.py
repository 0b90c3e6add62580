"""The commands `advbench store ...`: verify, gc, export, import."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.options import DEFAULT_STORE, DataRoot, StoreUrl, make_spec
from advbench.errors import InputError

app = typer.Typer(
    name="store",
    help="Check, clean, pack and unpack a store of results.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def verify(
    *,
    store: StoreUrl = DEFAULT_STORE,
    no_models: Annotated[bool, typer.Option("--no-models", help="Do not miss the weights of trainings.")] = False,
) -> None:
    """Read everything in a store and check it; exit code 1 if something is damaged or missing.

    A line tells of each file that is damaged, cannot be read or is missing; and, as no damage, of artifacts
    without a record, records of another schema, temporary files left over, and files that do not belong there.
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
            typer.echo(str(found))
        damaged += found.damage
    if not amounts:
        raise InputError(f"store {store!r} holds nothing", remedy="name another with --store")
    for sort, amount in amounts.items():
        typer.echo(f"{sort}: {amount.count}, {_bytes(amount.size)}")
    typer.echo(f"{damaged} damaged or missing" if damaged else "all sound")
    if damaged:
        raise typer.Exit(1)


@app.command()
def gc(
    *,
    store: StoreUrl = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    keep_examples: Annotated[bool, typer.Option("--keep-examples", help="Keep adversarial examples.")] = False,
    failures: Annotated[bool, typer.Option("--failures", help="Forget why tasks failed, too.")] = False,
) -> None:
    """Remove what nothing needs; refused while a run uses the store.

    That is: adversarial examples, artifacts without a record, what is damaged, states of trainings that are
    done, leases, temporary files older than an hour, and heartbeats of all runs but the last 20.
    """
    from advbench.store.gc import collect_garbage
    from advbench.store.records import Store

    amounts = collect_garbage(Store(store), dry_run=dry_run, keep_examples=keep_examples, failures=failures)
    for what, amount in amounts.items():
        typer.echo(f"{'would remove' if dry_run else 'removed'} {amount.count} {what}, {_bytes(amount.size)}")
    if not amounts:
        typer.echo("nothing to remove")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write: NAME.tar or NAME.tar.gz.")],
    *,
    run: Annotated[
        Path | None, typer.Option("--run", help="The --out folder of a run: pack only what that needs.")
    ] = None,
    no_models: Annotated[bool, typer.Option("--no-models", help="Leave out the weights of trainings.")] = False,
    examples: Annotated[bool, typer.Option("--examples", help="With the adversarial examples that were kept.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    data_root: DataRoot = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Pack records and their artifacts into one file, for another store."""
    from advbench.store.archive import export as pack
    from advbench.store.records import Store

    keys = None if run is None else _keys(run, data_root)
    packed = pack(Store(store), file, keys, models=not no_models, examples=examples, force=force)
    if keys is not None and packed.absent:
        typer.echo(f"warning: {packed.absent} of the run's {len(keys)} tasks have no record yet", err=True)
    typer.echo(f"{file}: {packed.records} records, {packed.artifacts} artifacts, {_bytes(packed.size)}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that 'advbench store export' wrote.")],
    *,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Add what an export holds to a store; exit code 1 if the store says something else of the same task."""
    from advbench.store.archive import import_ as unpack
    from advbench.store.records import Store

    done = unpack(Store(store), file)
    for key in done.conflicts:
        typer.echo(f"conflict: record {key} says something else in the store, and is kept as it is there", err=True)
    typer.echo(
        f"{done.records} records and {done.artifacts} artifacts added, {done.known} records known, "
        f"{len(done.conflicts)} in conflict"
    )
    if done.conflicts:
        raise typer.Exit(1)


def _keys(run: Path, data_root: str | None) -> Collection[str]:
    from advbench.grid.run import prepare

    return prepare(make_spec(run / "spec.toml"), data_root).tasks.keys()


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"

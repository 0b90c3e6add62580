"""A submission: one defense's records in one file, to be judged by whoever keeps a board."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from advbench.boards.board import SPEC
from advbench.boards.findings import Findings, row_name
from advbench.boards.plans import lay_out, plan_as_made
from advbench.boards.rows import place
from advbench.errors import InputError, StoreError, unknown_name
from advbench.grid.identity import DATA, identify_data, identity_text, read_identity
from advbench.grid.plan import Plan
from advbench.grid.spec import RunSpec, make_spec, narrowed, parse_toml
from advbench.report.tables import RESULT_COLUMNS, planned, read_table, records
from advbench.store.archive import export
from advbench.store.records import Store

RECORDS = "records.tar"
RESULTS = "results.csv"
MEMBERS = (SPEC, DATA, RECORDS)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can state


@dataclass(frozen=True)
class Submitted:
    """What was packed.

    Attributes:
        path: the file.
        records: how many records are in it.
        cells: how many rows of results they make.
        size: bytes of the file.
    """

    path: Path
    records: int
    cells: int
    size: int


def submit(
    run: Path,
    label: str,
    store: Store,
    path: Path | None = None,
    *,
    models: bool = False,
    force: bool = False,
    data_root: str | None = None,
) -> Submitted | Findings:
    """Pack one defense of a run into a file; the same records give the same bytes.

    Args:
        run: the run's `--out` folder.
        label: the defense.
        store: where the run's records are.
        path: the file; by default LABEL.advbench.zip.
        models: with the weights of trainings.
        force: replace a file that is there.
        data_root: folder of the data sets.

    Returns:
        What was packed; or, where something of the defense is not there, what.

    Raises:
        InputError: no such run or defense, or the file is there already.
        StoreError: the store cannot be read, or the file not written.
    """
    path = path or Path(f"{re.sub(r'[^A-Za-z0-9_.@+-]', '_', label)}.advbench.zip")
    if path.is_dir() or (os.path.lexists(path) and not force):
        raise InputError(f"file {path} is there already", remedy="name another with --out, or replace it with --force")
    spec = narrow(make_spec(parse_toml(run / SPEC)), [label])
    identity = read_identity(run) or identify_data(spec, data_root)
    findings = Findings()
    if (run / RESULTS).is_file():
        results = read_table(run / RESULTS, RESULT_COLUMNS)
        plan = plan_as_made(spec, identity, results)
        _check_keys(plan, results, findings)
    else:
        plan = lay_out(spec, identity)
    for kind, where in _absent(plan, store):
        findings.add(kind, where)
    if findings:
        return findings
    with tempfile.TemporaryDirectory(prefix="advbench-submit-") as folder:
        packed_records = Path(folder) / RECORDS
        packed = export(store, packed_records, plan.tasks.keys(), models=models)
        _zip(path, {SPEC: spec.to_toml().encode(), DATA: identity_text(identity).encode()}, packed_records)
    return Submitted(path, packed.records, len(plan.cells), path.stat().st_size)


def narrow(spec: RunSpec, labels: Collection[str]) -> RunSpec:
    """The part of a spec that is about some of its defenses.

    Raises:
        InputError: one of them is not in it.
    """
    for label in labels:
        if label not in spec.defenses:
            raise unknown_name("defense of the run", label, spec.defenses)
    part = spec.model_copy(update={"defenses": tuple(name for name in spec.defenses if name in labels)})
    return narrowed(part, spec, spec.set)


def _check_keys(plan: Plan, results: pd.DataFrame, findings: Findings) -> None:
    """Whether the results that the run shows are those that would be packed."""
    shown = {place(row): row for row in records(results)}
    for due in records(planned(plan)):
        row = shown.get(place(due))
        if row is not None and row["key"] != due["key"]:
            findings.add(f"{RESULTS} shows other results than the plugins that are installed make", row_name(row))


def _absent(plan: Plan, store: Store) -> Iterator[tuple[str, str]]:
    """What of a plan the store does not have: records, and what evaluations keep of their predictions."""
    done = store.done(plan.tasks)
    for key, task in plan.tasks.items():
        if key not in done:
            failure = store.read_failure(key)
            yield (f"failed: {failure['reason']}", task.label) if failure else ("not computed yet", task.label)
        elif task.kind == "evaluate" and not store.is_done(key, with_artifact=True):
            yield "the predictions are not in the store any more", task.label


def _zip(path: Path, texts: dict[str, bytes], records: Path) -> None:
    """Write the file whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, raw in texts.items():
                archive.writestr(_member(name, len(raw)), raw, zipfile.ZIP_DEFLATED, 6)
            with archive.open(_member(RECORDS, records.stat().st_size), "w") as into, records.open("rb") as file:
                shutil.copyfileobj(file, into, 2**20)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}", remedy="name another with --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def _member(name: str, size: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, EPOCH)
    member.create_system = 3  # the same bytes on every system
    member.external_attr = 0o644 << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    member.file_size = size
    return member

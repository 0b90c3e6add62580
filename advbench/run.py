"""A whole run: a spec is checked and laid out, its tasks run, its results become files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from advbench.architectures import build
from advbench.config import RunSpec, resolve
from advbench.datasets import load_dataset
from advbench.errors import InputError
from advbench.executors import Executor
from advbench.plan import Plan, Task, make_plan
from advbench.registry import registry
from advbench.report import Report, collect
from advbench.scheduler import Outcome, Watcher, run_plan
from advbench.store import Store, write_file
from advbench.tasks import Record, identify

FILES = ("spec.toml", "results.csv", "leaderboard.csv", "leaderboard.md", "affinity.csv", "retention.csv")


@dataclass(frozen=True)
class Finished:
    """What a run left.

    Attributes:
        outcome: which tasks ran, were skipped, failed.
        report: the tables.
        files: the files written.
    """

    outcome: Outcome
    report: Report
    files: tuple[Path, ...]


def prepare(spec: RunSpec, data_root: str | None = None) -> Plan:
    """Check everything that can be checked before work begins, and lay the run out.

    Raises:
        InputError: an unknown name, a bad value, absent data, or a net that the images do not fit.
    """
    defenses, attacks = resolve(spec)
    dataset = load_dataset(spec.dataset, data_root)
    for name in sorted({choice.architecture["name"] for choice in defenses}):
        build(name, dataset.train, seed=0)
    core = registry().find("dataset", "digits").version
    return make_plan(spec, defenses, attacks, identify(dataset), core)


def execute(
    plan: Plan,
    waiting: Mapping[str, Task],
    store: Store,
    make_executor: Callable[[], Executor],
    watcher: Watcher,
    out: Path,
    *,
    keep_examples: bool = False,
) -> Finished:
    """Run a plan and write its files, also when cells failed.

    Raises:
        StoreError: the store or the folder cannot be written.
    """
    outcome, report = carry_out(plan, waiting, store, make_executor, watcher, keep_examples=keep_examples)
    write_file(out / "spec.toml", plan.spec.to_toml().encode())
    return Finished(outcome, report, (out / "spec.toml", *write_report(report, out)))


def carry_out(
    plan: Plan,
    waiting: Mapping[str, Task],
    store: Store,
    make_executor: Callable[[], Executor],
    watcher: Watcher,
    *,
    keep_examples: bool = False,
) -> tuple[Outcome, Report]:
    """Run a plan; make its tables, also when cells failed.

    Raises:
        StoreError: the store cannot be written.
    """
    hooks = registry().manager.hook

    def tell(task: Task, record: Record) -> None:
        try:
            hooks.advbench_task_finished(task=task, record=record)
        except Exception as error:
            warnings.warn(f"a tracker failed on {task.label}: {type(error).__name__}: {error}", stacklevel=2)

    executor = make_executor()
    try:
        outcome = run_plan(plan, waiting, store, executor, watcher, keep_examples=keep_examples, on_finished=tell)
    finally:
        executor.close()
    return outcome, collect(plan, store, outcome.failed)


def write_report(report: Report, out: Path) -> tuple[Path, ...]:
    """Write the tables into a folder; returns their paths."""
    paths = []
    for name, text in report.files().items():
        write_file(out / name, text.encode())
        paths.append(out / name)
    return tuple(paths)


def check_writable(out: Path) -> None:
    """Make the output folder and make sure that it can be written, before any work is done.

    Raises:
        InputError: it cannot.
    """
    probe = out / ".advbench-write-test"
    for name in FILES:
        if (out / name).is_dir():
            raise InputError(f"output folder {out}", expected=f"no folder named {name} in it", remedy="move it away")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output folder {out}",
            expected="a folder that can be written",
            got=error.strerror or str(error),
            remedy="choose another with --out",
        ) from error

"""A whole run: a spec is checked and laid out, its tasks run, its results become files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from advbench.collector import paused
from advbench.config import Choice, RunSpec, resolve
from advbench.data.base import Data
from advbench.data.datasets import load_dataset
from advbench.data.ood import identify_ood, ood_images
from advbench.errors import InputError
from advbench.executors import Executor
from advbench.identity import DATA, blank, identify, identity_text, is_about, read_identity
from advbench.models.nets import build
from advbench.plan import Identity, Plan, Task, make_plan
from advbench.registry import registry
from advbench.report import FILES, Report, collect
from advbench.report.output import DEFAULT, PAGE, contents
from advbench.report.references import Reference
from advbench.report.tables import planned
from advbench.scheduler import Outcome, Scheduler, Watcher, failed_before, failures
from advbench.store.heartbeat import Heartbeat, State
from advbench.store.records import Store
from advbench.store.storage import write_file
from advbench.tasks import Record

PLACE = ["source", "defense", "attack", "eps", "seed"]
TRACKER_FAILURES = 3  # in a row, after which a tracker is left alone


@dataclass(frozen=True)
class Settings:
    """How a plan is carried out.

    Attributes:
        keep_examples: keep adversarial examples after their last use.
        retry_failed: try again what failed by its own fault in an earlier run.
    """

    keep_examples: bool = False
    retry_failed: bool = False


def prepare(spec: RunSpec, data_root: str | None = None) -> Plan:
    """Check everything that can be checked before work begins, and lay the run out.

    Raises:
        InputError: an unknown name, a bad value, absent data, or a net that the images do not fit.
    """
    dataset = load_dataset(spec.dataset, data_root)
    ood = identify_ood(spec.ood, data_root, spec.ood_scale)
    for name in spec.ood:
        ood_images(name, data_root, 1, dataset.test.shape, spec.ood_scale)
    return _lay_out(spec, identify(dataset, ood), dataset.train)


def prepare_anew(spec: RunSpec, folder: Path, data_root: str | None = None) -> Plan:
    """The plan of a run that wrote to a folder, whose `data.json` stands for the data, if it says enough.

    Raises:
        InputError: as `prepare`.
    """
    identity = read_identity(folder)
    if identity is None or identity.shape is None or not is_about(identity, spec):
        return prepare(spec, data_root)
    return _lay_out(spec, identity, blank(identity.shape, identity.data.name))


def _lay_out(spec: RunSpec, identity: Identity, data: Data) -> Plan:
    defenses, attacks = resolve(spec)
    core = registry().find("dataset", "digits").version
    return make_plan(spec, defenses, attacks, identity, core, count_parameters(defenses, data))


def count_parameters(defenses: Iterable[Choice], data: Data) -> dict[str, int]:
    """How many weights each of the defenses' nets has for images like these, by the net's name.

    Raises:
        InputError: a net that the images do not fit.
    """
    names = sorted({choice.architecture["name"] for choice in defenses})
    return {name: sum(weights.numel() for weights in build(name, data, seed=0).parameters()) for name in names}


def carry_out(
    plan: Plan,
    waiting: Mapping[str, Task],
    store: Store,
    make_executor: Callable[[], Executor],
    watcher: Watcher,
    settings: Settings = Settings(),
) -> Outcome:
    """Run a plan, while its heartbeat says so to whoever asks.

    Args:
        plan: the run.
        waiting: its tasks that have to run; see `advbench.scheduler.outstanding`.
        store: where results are.
        make_executor: gives what they run on; not called where nothing waits.
        watcher: is told how it goes.
        settings: how.

    Raises:
        StoreError: the store cannot be written.
    """
    if not waiting:
        return Outcome(skipped=list(plan.tasks))
    failed = failed_before(plan, waiting, store)
    if settings.retry_failed:
        for key in failed:
            store.drop_failure(key)
        failed = {}
    heartbeat = Heartbeat(store.storage, _about(plan))
    heartbeat.open()
    scheduler = Scheduler(
        plan,
        waiting,
        store,
        heartbeat,
        watcher,
        failed=failed,
        keep_examples=settings.keep_examples,
        on_finished=_Trackers().tell,
    )
    state: State = "stopped"
    try:
        executor = make_executor()
        try:
            outcome = scheduler.run(executor)
        finally:
            executor.close()
        state = "failed" if outcome.failed else "done"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        heartbeat.close(state)
    scheduler.drop_left()
    return outcome


class _Trackers:
    """Tells each tracker of finished tasks; one that fails is warned of, and left alone once it failed often."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()

    def tell(self, task: Task, record: Record) -> None:
        given = {"task": task, "record": record}
        for tracker in registry().manager.hook.advbench_task_finished.get_hookimpls():
            name = tracker.plugin_name
            if self._failures[name] >= TRACKER_FAILURES:
                continue
            try:
                with chdir("."):
                    tracker.function(*(given[argument] for argument in tracker.argnames))
            except Exception as error:
                self._failures[name] += 1
                last = self._failures[name] == TRACKER_FAILURES
                end = "; it is told of no more tasks in this run" if last else ""
                message = f"a tracker failed on {task.label}: {type(error).__name__}: {error}{end}"
                warnings.warn(message, stacklevel=2)
            else:
                self._failures[name] = 0


def _about(plan: Plan) -> str:
    spec = plan.spec
    return f"{', '.join(spec.defenses)} under {', '.join(spec.attacks)} on {spec.dataset.partition(':')[0]}"


def collect_anew(plan: Plan, store: Store) -> Report:
    """The tables of a run from what a store holds by now."""
    failed = failures(plan, store)
    plan = replace(plan, tasks={})  # of a large grid they take as much memory as the tables, which do without
    return collect(plan, store, failed)


def write_out(plan: Plan, store: Store, outcome: Outcome, out: Path) -> tuple[Report, tuple[Path, ...]]:
    """Make a run's tables and write its files, also when cells failed.

    Returns:
        The tables, and the files written.

    Raises:
        StoreError: the folder cannot be written.
    """
    report = collect(plan, store, outcome.failed)
    texts = {"spec.toml": plan.spec.to_toml()}
    if plan.identity is not None:
        texts[DATA] = identity_text(plan.identity)
    for name, text in texts.items():
        write_file(out / name, text.encode())
    return report, (*(out / name for name in texts), *write_report(report, out, plan.spec))


@paused()
def write_report(
    report: Report,
    out: Path,
    spec: RunSpec,
    formats: Collection[str] = DEFAULT,
    references: Sequence[Reference] = (),
) -> tuple[Path, ...]:
    """Write a report into a folder, in all of these formats; returns the files' paths."""
    paths = []
    for name, raw in contents(report, formats, spec, references):
        write_file(out / name, raw)
        paths.append(out / name)
    return tuple(paths)


def check_kept(folder: Path, results: pd.DataFrame) -> None:
    """Make sure that no result that a folder's table has would be missing from the one that takes its place.

    Raises:
        InputError: some would.
    """
    lost = _lost(folder, results)
    if lost:
        raise InputError(
            f"folder {folder}",
            expected="to keep the results in its tables",
            got=f"{lost} that would be missing then",
            remedy="name the run's store with --store; to draw tables as they are: advbench leaderboard build --format",
        )


def check_no_board(out: Path, plan: Plan) -> None:
    """Make sure that a run does not take the place of a published board that has other rows.

    Raises:
        InputError: it would.
    """
    lost = _lost(out, planned(plan).assign(accuracy=0.0)) if (out / "index.html").exists() else 0
    if lost:
        raise InputError(
            f"output folder {out}",
            expected="no board with results that are not part of the run",
            got=f"{lost} of them",
            remedy="choose another with --out; 'advbench leaderboard merge' adds a defense to a board",
        )


def _lost(folder: Path, results: pd.DataFrame) -> int:
    """How many rows of a folder's `results.csv` have a result, and none in other results."""
    try:
        before = pd.read_csv(folder / "results.csv", usecols=[*PLACE, "accuracy"], keep_default_na=False, dtype=str)
        before = before[before.accuracy != ""].astype({"eps": float, "seed": int})
    except (OSError, ValueError):
        return 0  # nothing that could be read
    there = set(results.loc[results.accuracy.notna(), PLACE].itertuples(index=False, name=None))
    return sum(row not in there for row in before[PLACE].itertuples(index=False, name=None))


def check_writable(out: Path) -> None:
    """Make the output folder and make sure that it can be written, before any work is done.

    Raises:
        InputError: it cannot.
    """
    probe = out / ".advbench-write-test"
    for name in ("spec.toml", "data.json", PAGE, *FILES):
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

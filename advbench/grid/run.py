"""A whole run: a spec is checked and laid out, its tasks run, its results become files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from advbench.data.base import Data
from advbench.data.datasets import data_folder, load_dataset
from advbench.data.ood import identify_ood, ood_images
from advbench.grid.executors import Executor
from advbench.grid.identity import Identity, identify, is_about, read_identity
from advbench.grid.inputs import Component, TrainInputs
from advbench.grid.kept import Kept, KeptChoice, digests, read_kept
from advbench.grid.plan import Plan, Task, make_plan
from advbench.grid.scheduler import Outcome, Scheduler, Watch, failed_before
from advbench.grid.spec import Choice, RunSpec, pinned, resolve
from advbench.grid.tasks import Record
from advbench.models.nets import build
from advbench.registry import checkout_digest, registry
from advbench.registry import pinned as by_content
from advbench.store.heartbeat import Heartbeat, State
from advbench.store.records import Store

WEIGHTS = "weights"  # folder in the data root for files that specs name by SHA-256 alone
TRACKER_FAILURES = 3  # in a row, after which a tracker is left alone


@dataclass(frozen=True)
class Settings:
    """How a plan is carried out."""

    keep_examples: bool = False  # after their last use
    retry_failed: bool = False  # what failed by its own fault in an earlier run


def prepare(spec: RunSpec, data_root: str | None = None, kept: Kept | None = None) -> Plan:
    """Check everything that can be checked before work begins, and lay the run out.

    Args:
        spec: the run.
        data_root: folder of the data sets.
        kept: what is kept of the run's files, which are not imported then.

    Raises:
        InputError: an unknown name, a bad value, absent data, or a net that the images do not fit.
    """
    dataset = load_dataset(spec.dataset, data_root)
    ood = identify_ood(spec.ood, data_root, spec.ood_scale, spec.ood_signed)
    for name in spec.ood:
        ood_images(name, data_root, 1, dataset.test.shape, spec.ood_scale, spec.ood_signed)
    plan = lay_out(spec, identify(dataset, ood), dataset.train, checkout=checkout_digest(), kept=kept)
    needed = [task.inputs.defense.params for task in plan.tasks.values() if isinstance(task.inputs, TrainInputs)]
    by_content.search(data_folder(data_root) / WEIGHTS, by_content.lacking(needed))
    return plan


def prepare_anew(spec: RunSpec, folder: Path, data_root: str | None = None) -> Plan:
    """The plan of a run that wrote to a folder, whose `data.json` stands for the data, if it says enough.

    Raises:
        InputError: as `prepare`.
    """
    identity, (kept, _) = read_identity(folder), read_kept(folder)
    if identity is None or not is_about(identity, spec):
        return prepare(spec, data_root, kept)
    return lay_out(spec, identity, identity.blank(), checkout=checkout_digest(), kept=kept)


def lay_out(spec: RunSpec, identity: Identity, data: Data, *, checkout: str | None, kept: Kept | None = None) -> Plan:
    """The plan of a spec.

    Args:
        spec: the run.
        identity: of its data.
        data: images like its training images, for which nets are built to count their weights.
        checkout: digest of advbench's sources where it is installed from a checkout; None for a release's keys.
        kept: what is kept of the run's files, which are not imported then.

    Raises:
        InputError: an unknown name, a bad value, or nets that the images do not fit.
    """
    spec = pinned(spec, kept)
    defenses, attacks = resolve(spec, kept)
    nets = {choice.architecture: choice.net for choice in defenses}
    parameters = dict(kept.parameters) if kept else {}
    for name, net in sorted(nets.items()):
        if net is not None and not (kept and net.file):
            made = build(net.loaded_as, data, 0, net.params)
            parameters[name] = sum(weights.numel() for weights in made.parameters())
    return make_plan(spec, defenses, attacks, identity, checkout, parameters)


def keep(plan: Plan) -> Kept:
    """What a run keeps of the files that its plugins and nets are in."""
    pending = [each for cell in plan.cells for each in (cell.defense, cell.source, cell.attack) if each]
    used: dict[str, Choice] = {}
    while pending:
        choice = pending.pop()
        if choice.label not in used:
            used[choice.label] = choice
            pending += [choice.init] if choice.init else []
    net: Component | None = None
    choices: dict[str, KeptChoice] = {}
    parameters: dict[str, int] = {}
    for label, choice in sorted(used.items()):
        own = choice.architecture != plan.spec.architecture
        if choice.net and choice.net.file:
            net = net if own else choice.net
            parameters[choice.architecture] = plan.parameters[choice.architecture]
        if digests(choice.component) or (own and choice.net and choice.net.file):
            choices[label] = KeptChoice(
                kind="defense" if choice.net else "attack",
                component=choice.component,
                passes=choice.passes,
                init=choice.init.label if choice.init else None,
                traits=tuple(sorted(choice.traits)),
                net=choice.net if own else None,
                paper=choice.paper,
            )
    return Kept(choices=choices, net=net, parameters=parameters)


def carry_out(
    plan: Plan,
    waiting: Mapping[str, Task],
    store: Store,
    make_executor: Callable[[], Executor],
    watch: Watch,
    settings: Settings = Settings(),
) -> Outcome:
    """Run a plan, while its heartbeat says so to whoever asks.

    `waiting` are the tasks that have to run, see `advbench.grid.scheduler.outstanding`; where there are none,
    `make_executor` is not called.

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
    spec = plan.spec
    about = f"{', '.join(spec.defenses)} under {', '.join(spec.attacks)} on {spec.dataset.partition(':')[0]}"
    heartbeat = Heartbeat(store.storage, about)
    heartbeat.open()
    scheduler = Scheduler(
        plan,
        waiting,
        store,
        heartbeat,
        watch,
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

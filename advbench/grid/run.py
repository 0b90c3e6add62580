"""A complete run: check and plan a spec, execute its tasks."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path

from advbench.data.base import Data
from advbench.data.datasets import data_folder, load_dataset
from advbench.data.ood import identify_ood, ood_images
from advbench.errors import StoreError
from advbench.grid.executors import Executor
from advbench.grid.identity import Identity, identify, is_about, read_identity
from advbench.grid.inputs import Component, TrainInputs
from advbench.grid.kept import Kept, KeptChoice, digests, is_third_party, read_kept
from advbench.grid.plan import Plan, Task, make_plan
from advbench.grid.scheduler import Outcome, Scheduler, Watch, failed_before
from advbench.grid.spec import RunSpec, pinned, resolve
from advbench.grid.tasks import Record
from advbench.keys import content_key
from advbench.models.nets import build
from advbench.registry import checkout_digest, registry
from advbench.registry import pinned as by_content
from advbench.store.heartbeat import Heartbeat, State
from advbench.store.records import Store

WEIGHTS = "weights"  # folder in the data root for files given by SHA-256 only
TRACKER_FAILURES = 3  # consecutive failures after which a tracker is disabled


@dataclass(frozen=True)
class Settings:
    """Settings for the execution of a plan."""

    keep_examples: bool = False  # keep examples after their last use
    retry_failed: bool = False  # retry tasks that failed in a previous run


def prepare(spec: RunSpec, data_root: str | None = None, kept: Kept | None = None) -> Plan:
    """Check a spec as far as possible before any work, and plan the run.

    Args:
        spec: the run.
        data_root: folder of the data sets.
        kept: stored files of the run, which are then not imported.

    Raises:
        InputError: a name is unknown, a value invalid, data are missing, or images do not fit a net.
    """
    dataset = load_dataset(spec.dataset, data_root)
    ood = identify_ood(spec.ood, data_root, spec.ood_scale, spec.ood_signed)
    for name in spec.ood:
        ood_images(name, data_root, 1, dataset.test.shape, spec.ood_scale, spec.ood_signed, dataset.test)
    plan = lay_out(spec, identify(dataset, ood), dataset.train, checkout=checkout_digest(), kept=kept)
    needed = [task.inputs.defense.params for task in plan.tasks.values() if isinstance(task.inputs, TrainInputs)]
    by_content.search(data_folder(data_root) / WEIGHTS, by_content.lacking(needed))
    return plan


def prepare_anew(spec: RunSpec, folder: Path, data_root: str | None = None) -> Plan:
    """Plan of the run in a folder; its `data.json` replaces the data if it is complete.

    Raises:
        InputError: as in `prepare`.
    """
    identity, (kept, _) = read_identity(folder), read_kept(folder)
    if identity is None or not is_about(identity, spec):
        return prepare(spec, data_root, kept)
    return lay_out(spec, identity, identity.blank(), checkout=checkout_digest(), kept=kept)


def lay_out(spec: RunSpec, identity: Identity, data: Data, *, checkout: str | None, kept: Kept | None = None) -> Plan:
    """Plan a spec for given data.

    Args:
        spec: the run.
        identity: identity of its data.
        data: images shaped as its training images, for building nets and counting weights.
        checkout: digest of advbench's sources if installed from a checkout; None for keys of a release.
        kept: stored files of the run, which are then not imported.

    Raises:
        InputError: a name is unknown, a value invalid, or images do not fit a net.
    """
    spec = pinned(spec, kept)
    defenses, attacks = resolve(spec, kept)
    nets = {choice.architecture: choice.net for choice in defenses}
    parameters = dict(kept.parameters) if kept else {}
    for name, net in sorted(nets.items()):
        if net is not None and not (kept and name in kept.parameters and (net.file or is_third_party(net))):
            made = build(net.loaded_as, data, 0, net.params)
            parameters[name] = sum(weights.numel() for weights in made.parameters())
    return make_plan(spec, defenses, attacks, identity, checkout, parameters)


def keep(plan: Plan) -> Kept:
    """Plugins and nets to describe in a run's folder because they are in files or of other distributions."""
    used = {each.label: each for choice in plan.choices() for each in choice.lineage}
    net: Component | None = None
    choices: dict[str, KeptChoice] = {}
    parameters: dict[str, int] = {}
    for label, choice in sorted(used.items()):
        own = choice.architecture != plan.spec.architecture
        outside = choice.net is not None and (choice.net.file is not None or is_third_party(choice.net))
        if outside:
            net = net if own else choice.net
            parameters[choice.architecture] = plan.parameters[choice.architecture]
        if digests(choice.component) or is_third_party(choice.component) or (own and outside):
            own = own or (not outside and choice.net is not None and bool(choice.net.params))
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
    """Execute a plan while its heartbeat is published in the store.

    `waiting` are the tasks to run (see `advbench.grid.scheduler.outstanding`); if there are none, `make_executor` is
    not called.

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
    heartbeat = Heartbeat(store.storage, about, plan=content_key(sorted(plan.tasks)))
    heartbeat.open()
    scheduler = Scheduler(
        plan,
        waiting,
        store,
        heartbeat,
        watch,
        failed=failed,
        keep_examples=settings.keep_examples,
        on_finished=_Trackers().report,
    )
    state: State = "stopped"
    try:
        executor = make_executor()
        try:
            outcome = scheduler.run(executor)
        except BaseException:
            executor.close()
            with suppress(StoreError):
                scheduler.stopped(executor.places)
            raise
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
    """Reports finished tasks to trackers; warns of failures and disables a tracker after several."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()

    def report(self, task: Task, record: Record) -> None:
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
                end = "; it is disabled for the rest of this run" if last else ""
                message = f"a tracker failed on {task.label}: {type(error).__name__}: {error}{end}"
                warnings.warn(message, stacklevel=2)
            else:
                self._failures[name] = 0

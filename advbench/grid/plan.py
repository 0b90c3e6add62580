"""From a spec to a DAG of tasks with content-addressed keys. Uses neither torch nor files."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from advbench.attacks.base import Threat
from advbench.data.ood import OodSet
from advbench.grid.identity import Identity
from advbench.grid.inputs import (
    CPU,
    Checks,
    Component,
    Converge,
    CraftInputs,
    DataRef,
    EvaluateInputs,
    History,
    OodRef,
    Sweep,
    TaskInputs,
    TaskKind,
    TrainInputs,
    as_json,
)
from advbench.grid.spec import Choice, RunSpec, converges, one_for_all, stops_early, swept, transferred
from advbench.keys import content_key

PROFILE = {"precision", "norm", "draws", "budget", "sweep", "converge", "threads", "batch_size"}
PRODUCT = 4  # maximum factor on an attack's passes, relative to that on one hyperparameter
FORESEEN = 20  # passes of an attack run to convergence, relative to its initial ones, if three axes converge at once


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work."""

    inputs: TaskInputs  # all inputs of the result
    key: str  # key of the result in the store: SHA-256 of the inputs
    needs: tuple[str, ...] = ()  # keys of the tasks whose artifacts it reads
    defense: str = ""  # label of the trained or evaluated defense; empty for crafting
    source: str = ""  # label of the defense that examples are crafted on; empty for clean images and training
    attack: str = ""  # label; `none` for clean images, empty for training and out-of-distribution images
    eps: float | None = None  # radius; 0 for clean images, None if not applicable
    ood: str = ""  # label of the evaluated out-of-distribution images, if any
    cost: float = 0.0  # approximate number of forward-and-backward passes per image; for progress and plans
    net: str = ""  # architecture
    profile: str = ""  # equal for tasks with the same time and memory, which differ in seed, radius and weights only

    @property
    def kind(self) -> TaskKind:
        """Kind of the task: `"train"`, `"craft"` or `"evaluate"`."""
        return self.inputs.kind

    @property
    def seed(self) -> int:
        """Seed of the training, attack or evaluation."""
        return self.inputs.seed

    @property
    def label(self) -> str:
        """Human-readable description of the task."""
        radius = "" if self.eps is None else f" {self.eps:.4g}"
        if self.kind == "train":
            what = self.defense
        elif self.kind == "craft":
            what = f"{self.attack}{radius} on {self.source}" + (f" of {self.ood}" if self.ood else "")
        elif self.attack in ("", "none"):
            what = f"{self.defense} on {self.ood or 'clean'}"
        else:
            of = f" of {self.ood}" if self.ood else ""
            what = f"{self.defense} on {self.attack}{radius}{of} from {self.source}"
        return f"{self.kind} {what}, seed {self.seed}"


class Cell(NamedTuple):
    """A planned row of `results.csv`."""

    defense: Choice
    source: Choice
    attack: Choice | None
    eps: float
    seed: int
    key: str


class OodCell(NamedTuple):
    """Evaluation of a defense on out-of-distribution images, unperturbed or attacked."""

    defense: Choice
    name: str
    seed: int
    key: str
    attack: Choice | None = None
    eps: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The tasks of a run and the cells that they fill."""

    spec: RunSpec
    tasks: Mapping[str, Task]  # by key, in topological order
    cells: tuple[Cell, ...]  # rows of `results.csv`
    trained: Mapping[tuple[str, int], str] = field(default_factory=dict)  # keys of trainings by defense and seed
    parameters: Mapping[str, int] = field(default_factory=dict)  # number of weights by displayed architecture
    identity: Identity | None = None  # of its data; None of a part of a plan
    ood: tuple[OodCell, ...] = ()
    known: tuple[Cell, ...] = ()  # cells of attacks on a known draw
    left_alone: tuple[str, ...] = ()  # out-of-distribution images that cannot be attacked

    def choices(self) -> Iterable[Choice]:
        """Each defense and attack of the evaluations, once."""
        return {each.label: each for cell in self.evaluated for each in (cell.defense, cell.attack) if each}.values()

    @property
    def evaluated(self) -> tuple[Cell | OodCell, ...]:
        """Cells of all evaluations."""
        return (*self.cells, *self.ood, *self.known)

    @property
    def evaluations(self) -> list[str]:
        """Return the keys of all evaluations."""
        return [cell.key for cell in self.evaluated]

    def part(self, keys: Collection[str]) -> Plan:
        """The evaluations with certain keys, and all tasks that they need."""
        needed = set(keys)
        for task in reversed(list(self.tasks.values())):
            if task.key in needed:
                needed.update(task.needs)
        tasks = {key: task for key, task in self.tasks.items() if key in needed}
        cells, known = (tuple(cell for cell in group if cell.key in keys) for group in (self.cells, self.known))
        ood = tuple(cell for cell in self.ood if cell.key in keys)
        return Plan(self.spec, tasks, cells, ood=ood, known=known)


def make_plan(
    spec: RunSpec,
    defenses: tuple[Choice, ...],
    attacks: tuple[Choice, ...],
    identity: Identity,
    checkout: str | None = None,
    parameters: Mapping[str, int] | None = None,
) -> Plan:
    """Plan a run: train each defense, craft on each as source, evaluate on each as target.

    Args:
        spec: a completed spec.
        defenses: resolved defenses.
        attacks: resolved attacks.
        identity: identity of its data; `foreign` are the data sets of `spec.ood`.
        checkout: digest of advbench's sources if installed from a checkout.
        parameters: number of weights by architecture.
    """
    layout = _Layout(spec, identity, checkout)
    about: dict[str, Any]
    cells: list[Cell] = []
    ood: list[OodCell] = []
    known: list[Cell] = []
    for seed in spec.seeds:
        for choice in defenses:
            layout.train(choice, seed)
        audit = Checks(Threat(spec.norm, spec.eps[-1])) if spec.eps[-1] else None
        clean = {t.label: layout.evaluate(t, seed, audit=audit, attack="none", eps=0.0) for t in defenses}
        cells += [Cell(target, target, None, 0.0, seed, clean[target.label]) for target in defenses]
        for other, target in product(identity.foreign, defenses):
            key = layout.evaluate(target, seed, clean[target.label], ood=other)
            ood.append(OodCell(target, other.label, seed, key))
        for attack in attacks:
            steps: dict[str, Sweep] = {}
            for eps in filter(None, spec.eps):  # eps 0 is the clean row
                if "certainty" in attack.traits:
                    for other, target in product(filter(attackable, identity.foreign), defenses):
                        examples = layout.craft(target, seed, attack, eps, None, other)
                        about = {"source": target.label, "attack": attack.label, "eps": eps}
                        key = layout.evaluate(target, seed, clean[target.label], examples, ood=other, **about)
                        ood.append(OodCell(target, other.label, seed, key, attack, eps))
                    continue
                if "the_draw" in attack.traits:
                    for target in defenses:
                        examples = layout.craft(target, seed, attack, eps, None)
                        about = {"source": target.label, "attack": attack.label, "eps": eps}
                        draws = attack.params["draws"]
                        key = layout.evaluate(target, seed, None, examples, draws=draws, **about)
                        known.append(Cell(target, target, attack, eps, seed, key))
                    continue
                for source in (attack.init,) if attack.init else defenses:
                    step = steps.get(source.label, Sweep()) if swept(spec, attack) else None
                    examples = layout.craft(source, seed, attack, eps, step)
                    steps[source.label] = Sweep(examples, eps)
                    for target in defenses if transferred(spec, attack) else (source,):
                        within = Threat(spec.norm, eps) if one_for_all(spec, attack) else None
                        about = {"source": source.label, "attack": attack.label, "eps": eps}
                        key = layout.evaluate(target, seed, clean[target.label], examples, within, **about)
                        cells.append(Cell(target, source, attack, eps, seed, key))
    scaled = [each.label for each in identity.foreign if not attackable(each)]
    left_alone = scaled if any("certainty" in attack.traits for attack in attacks) else []
    labels = {choice.label for choice in defenses}
    trained = {which: key for which, key in layout.trained.items() if which[0] in labels}
    return Plan(
        spec,
        layout.tasks,
        tuple(cells),
        trained,
        parameters or {},
        identity,
        tuple(ood),
        tuple(known),
        tuple(left_alone),
    )


def attackable(images: OodSet) -> bool:
    """True if out-of-distribution images can be attacked inside [0, 1]; False if their pixel values are scaled."""
    return images.scale == 1.0 and images.name != "gaussian"


class _Layout:
    """Builder of a plan; each method adds a task unless it exists, and returns its key."""

    def __init__(self, spec: RunSpec, identity: Identity, checkout: str | None) -> None:
        self.tasks: dict[str, Task] = {}
        self.trained: dict[tuple[str, int], str] = {}
        self._spec = spec
        self._data = identity
        self._history: History | None = None
        self._images = min(spec.limit or identity.test_count, identity.test_count)
        self._common: dict[str, Any] = {
            "data": DataRef(identity.name, identity.sha256),
            "threads": spec.threads,
            "checkout": checkout,
        }
        if spec.history:
            ood = tuple(map(_reference, identity.foreign))
            every = None if spec.history == "epoch" else spec.history
            self._history = History(self._images, spec.draws, every, ood)
        self._profiles: dict[tuple[str, ...], str] = {}

    def train(self, defense: Choice, seed: int) -> str:
        """Add the training of a defense, after that of its initial weights."""
        which = (defense.label, seed)
        if which not in self.trained:
            init = self.train(defense.init, seed) if defense.init else None
            inputs = TrainInputs(
                defense=defense.component,
                architecture=_net(defense),
                precision=self._spec.precision,
                device=None if self._spec.device == CPU else self._spec.device,
                init=init,
                history=self._history,
                seed=seed,
                **self._common,
            )
            cost = (defense.passes or 0.0) * self._data.train_count
            self.trained[which] = self._add(inputs, (init,), (defense,), cost=cost, defense=defense.label)
        return self.trained[which]

    def craft(
        self, source: Choice, seed: int, attack: Choice, eps: float, step: Sweep | None, ood: OodSet | None = None
    ) -> str:
        """Add crafting for one eps, in a sweep after the previous one; for a minimal-norm attack once for all eps.

        Attacks the test images or out-of-distribution images.
        """
        spec = self._spec
        images = min(ood.images, self._images) if ood else self._images
        rule = None
        if converges(spec, attack):
            assert spec.converge is not None, "the attack is run to convergence"
            rule = Converge(spec.converge, PRODUCT * spec.converge, draws=spec.draws)
        inputs = CraftInputs(
            attack=attack.component,
            source=self.train(source, seed),
            norm=self._spec.norm,
            eps=None if one_for_all(self._spec, attack) else eps,
            images=images,
            batch_size=self._spec.batch_size,
            budget=self._spec.budget,
            sweep=step,
            ood=_reference(ood) if ood else None,
            converge=rule,
            stop_early=stops_early(self._spec, attack) or None,
            seed=seed,
            **self._common,
        )
        needs = (inputs.source, step.after if step else None)
        cost = min(attack.passes or 0.0, self._spec.budget or math.inf) * images * (FORESEEN if rule else 1)
        labels = {"source": source.label, "attack": attack.label, "eps": inputs.eps, "ood": ood.label if ood else ""}
        return self._add(inputs, needs, (source, attack), cost=cost, **labels)

    def evaluate(
        self,
        target: Choice,
        seed: int,
        clean: str | None = None,
        examples: str | None = None,
        within: Threat | None = None,
        ood: OodSet | None = None,
        draws: int | None = None,
        audit: Checks | None = None,
        **labels: Any,
    ) -> str:
        """Add the evaluation of a defense on examples, on out-of-distribution images, or on clean images.

        With `draws`, evaluates that many draws, each on the examples crafted on it. The evaluation of clean images,
        which it also reads, is not part of the key because it is determined by the other inputs.
        """
        images = min(ood.images, self._images) if ood else self._images
        inputs = EvaluateInputs(
            target=self.trained[target.label, seed],
            examples=examples,
            within=within,
            audit=audit,
            foreign=_reference(ood) if ood else None,
            known=None if draws is None else True,
            draws=draws or self._spec.draws,
            images=images,
            batch_size=self._spec.batch_size,
            seed=seed,
            **self._common,
        )
        labels |= {"defense": target.label, "ood": ood.label if ood else ""}
        cost = self._spec.draws * images / 3  # a backward pass costs about two forward passes
        return self._add(inputs, (inputs.target, examples, clean), (target,), cost=cost, **labels)

    def _add(
        self, inputs: TaskInputs, needs: tuple[str | None, ...], plugins: tuple[Choice, ...], **values: Any
    ) -> str:
        key = inputs.key
        if key not in self.tasks:
            profile = self._profile(inputs.kind, plugins)
            net = plugins[0].architecture
            self.tasks[key] = Task(inputs, key, tuple(filter(None, needs)), net=net, profile=profile, **values)
        return key

    def _profile(self, kind: TaskKind, plugins: tuple[Choice, ...]) -> str:
        """Profile of tasks with the same time and memory, from the defense whose net runs and the attack, if any."""
        names = (kind, *(plugin.label for plugin in plugins))
        if names not in self._profiles:
            spec = self._spec
            about = {
                "kind": kind,
                "plugins": [as_json(plugin.component) for plugin in plugins],
                "architecture": as_json(_net(plugins[0])),
                "data": self._data.sha256,
                "images": self._images,
                "device": spec.device or CPU,
                **spec.model_dump(include=PROFILE),
            }
            self._profiles[names] = content_key(about)
        return self._profiles[names]


def _reference(ood: OodSet) -> OodRef:
    return OodRef(ood.name, ood.sha256, ood.scale, ood.signed or None)


def _net(defense: Choice) -> Component:
    assert defense.net is not None, "a defense has a net"
    return defense.net

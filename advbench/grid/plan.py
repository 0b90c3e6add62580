"""From a spec to a DAG of tasks with content keys. Knows neither torch nor disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any, NamedTuple, TypedDict

from advbench.data.ood import OodSet
from advbench.grid.identity import DataIdentity, Identity
from advbench.grid.inputs import (
    Ball,
    Component,
    CraftInputs,
    DataRef,
    EvaluateInputs,
    OodRef,
    Sweep,
    TaskInputs,
    TaskKind,
    TrainInputs,
    read_inputs,
)
from advbench.grid.spec import Choice, RunSpec, swept, transferred
from advbench.keys import content_key


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work.

    Attributes:
        inputs: everything that the result depends on.
        key: the name of the result in the store: the SHA-256 of the inputs.
        needs: keys of the tasks whose artifacts it reads.
        defense: label of the defense that is trained or evaluated; empty where examples are crafted.
        source: label of the defense that examples are crafted on; empty of clean images and of a training.
        attack: label of the attack; `none` of clean images, empty of a training and of out-of-distribution images.
        eps: the radius; 0 of clean images; None where there is none.
        ood: label of the out-of-distribution images that are evaluated, if any.
        cost: forward-and-backward passes of an image that it makes, roughly; for progress and plans.
        net: the architecture that it runs.
        profile: alike in tasks that take the same time and memory: all but seed, radius and weights are the same.
    """

    inputs: TaskInputs
    key: str
    needs: tuple[str, ...] = ()
    defense: str = ""
    source: str = ""
    attack: str = ""
    eps: float | None = None
    ood: str = ""
    cost: float = 0.0
    net: str = ""
    profile: str = ""

    @property
    def kind(self) -> TaskKind:
        """One of `"train"`, `"craft"` and `"evaluate"`."""
        return self.inputs.kind

    @property
    def seed(self) -> int:
        """The seed of training, attack or evaluation."""
        return self.inputs.seed

    @property
    def label(self) -> str:
        """The task in words."""
        radius = "" if self.eps is None else f" {self.eps:.4g}"
        if self.kind == "train":
            what = self.defense
        elif self.kind == "craft":
            what = f"{self.attack}{radius} on {self.source}"
        elif self.attack in ("", "none"):
            what = f"{self.defense} on {self.ood or 'clean'}"
        else:
            what = f"{self.defense} on {self.attack}{radius} from {self.source}"
        return f"{self.kind} {what}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "needs": list(self.needs), "inputs": self.inputs.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_json` described."""
        return cls(**{**values, "needs": tuple(values["needs"]), "inputs": read_inputs(values["inputs"])})


class Cell(NamedTuple):
    """One row of `results.csv` to be: where its numbers will be found."""

    defense: Choice
    source: Choice
    attack: Choice | None
    eps: float
    seed: int
    key: str


class OodCell(NamedTuple):
    """What one defense makes of the images of another data set."""

    defense: Choice
    name: str
    seed: int
    key: str


class Swept(NamedTuple):
    """The step of a sweep before this one: its key and eps; empty and 0 before the first."""

    key: str
    eps: float


class Examples(NamedTuple):
    """Adversarial examples that are evaluated.

    Attributes:
        key: of the task that crafts them.
        clean: key of the evaluation of the same target on the images that they were made of.
        within: the radius to which examples of a minimal-norm attack are brought before they are evaluated.
    """

    key: str
    clean: str
    within: float | None


@dataclass(frozen=True)
class Plan:
    """A run, laid out.

    Attributes:
        spec: what is computed.
        tasks: in an order that respects their needs, by key.
        cells: the rows of `results.csv` that they fill.
        trained: keys of the trainings by defense and seed.
        parameters: how many weights each architecture has.
        identity: of its data; None of plans that were merged.
        ood: what defenses make of other data sets' images.
    """

    spec: RunSpec
    tasks: Mapping[str, Task]
    cells: tuple[Cell, ...]
    trained: Mapping[tuple[str, int], str] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    identity: Identity | None = None
    ood: tuple[OodCell, ...] = ()


def make_plan(
    spec: RunSpec,
    defenses: tuple[Choice, ...],
    attacks: tuple[Choice, ...],
    identity: Identity,
    checkout: str | None = None,
    parameters: Mapping[str, int] | None = None,
) -> Plan:
    """Lay out a run: train each defense, craft on each as source, evaluate on each as target.

    Args:
        spec: a completed spec.
        defenses: its defenses, resolved.
        attacks: its attacks, resolved.
        identity: of its data; `ood` are the data sets of `spec.ood`.
        checkout: digest of advbench's sources where it is installed from a checkout.
        parameters: how many weights each architecture has.
    """
    layout = _Layout(spec, identity.data, checkout)
    for seed in spec.seeds:
        trained = {choice.label: layout.train(choice, seed) for choice in defenses}
        clean = {t.label: layout.evaluate(t, trained[t.label], None, seed) for t in defenses}
        layout.cells += [Cell(target, target, None, 0.0, seed, clean[target.label]) for target in defenses]
        for other, target in product(identity.ood, defenses):
            key = layout.evaluate_ood(target, trained[target.label], other, clean[target.label], seed)
            layout.ood.append(OodCell(target, other.label, seed, key))
        for attack in attacks:
            crafted: dict[str, Swept] = {}
            alone = not transferred(spec, attack)
            for eps in filter(None, spec.eps):  # eps 0 is the clean row
                for source in (attack.init,) if attack.init else defenses:
                    before = crafted.get(source.label, Swept("", 0.0)) if swept(spec, attack) else None
                    examples = layout.craft(source, layout.train(source, seed), attack, eps, seed, before)
                    crafted[source.label] = Swept(examples, eps)
                    within = eps if "minimal_norm" in attack.traits else None
                    for target in (source,) if alone else defenses:
                        found = Examples(examples, clean[target.label], within)
                        key = layout.evaluate(target, trained[target.label], found, seed, source, attack, eps)
                        layout.cells.append(Cell(target, source, attack, eps, seed, key))
    labels = {choice.label for choice in defenses}
    models = {which: key for which, key in layout.trained.items() if which[0] in labels}
    return Plan(spec, layout.tasks, tuple(layout.cells), models, parameters or {}, identity, tuple(layout.ood))


def merged(plans: Sequence[Plan]) -> Plan:
    """The tasks of several plans as one, which fills no cells of its own."""
    tasks = {key: task for plan in plans for key, task in plan.tasks.items()}
    return Plan(plans[0].spec, tasks, ())


class _Common(TypedDict):
    """What the inputs of all tasks of a plan share."""

    data: DataRef
    threads: int
    checkout: str | None


class _Layout:
    """A plan in the making."""

    def __init__(self, spec: RunSpec, data: DataIdentity, checkout: str | None) -> None:
        self.tasks: dict[str, Task] = {}
        self.cells: list[Cell] = []
        self.ood: list[OodCell] = []
        self._spec = spec
        self._data = data
        self._images = min(spec.limit or data.test_count, data.test_count)
        self._common: _Common = {
            "data": DataRef(data.name, data.digest),
            "threads": spec.threads,
            "checkout": checkout,
        }
        self.trained: dict[tuple[str, int], str] = {}
        self._profiles: dict[tuple[str, ...], str] = {}

    def train(self, defense: Choice, seed: int) -> str:
        known = self.trained.get((defense.label, seed))
        if known is not None:
            return known
        init = self.train(defense.init, seed) if defense.init else None
        inputs = TrainInputs(
            defense=defense.component,
            architecture=_net(defense),
            precision=self._spec.precision,
            init=init,
            seed=seed,
            **self._common,
        )
        task = Task(
            inputs,
            inputs.key,
            () if init is None else (init,),
            defense=defense.label,
            cost=(defense.passes or 0.0) * self._data.train_count,
        )
        self.trained[defense.label, seed] = self._add(task, defense)
        return task.key

    def craft(
        self, source: Choice, trained: str, attack: Choice, eps: float, seed: int, before: Swept | None = None
    ) -> str:
        """One task for each eps, in a sweep after the one before; of a minimal-norm attack one for all, without eps."""
        every = "minimal_norm" in attack.traits
        sweep = None if before is None else Sweep(before.key or None, before.eps)
        inputs = CraftInputs(
            attack=attack.component,
            source=trained,
            norm=self._spec.norm,
            eps=None if every else eps,
            images=self._images,
            batch_size=self._spec.batch_size,
            budget=self._spec.budget,
            sweep=sweep,
            seed=seed,
            **self._common,
        )
        task = Task(
            inputs,
            inputs.key,
            (trained, sweep.after) if sweep and sweep.after else (trained,),
            source=source.label,
            attack=attack.label,
            eps=inputs.eps,
            cost=min(attack.passes or 0.0, self._spec.budget or math.inf) * self._images,
        )
        return self._add(task, source, attack)

    def evaluate(
        self,
        target: Choice,
        trained: str,
        found: Examples | None,
        seed: int,
        source: Choice | None = None,
        attack: Choice | None = None,
        eps: float = 0.0,
    ) -> str:
        """One task for each target and set of examples; None for the clean images.

        That it also reads the evaluation of the clean images is not in the key, whose other inputs name it.
        """
        inputs = EvaluateInputs(
            target=trained,
            examples=found and found.key,
            within=None if found is None or found.within is None else Ball(self._spec.norm, found.within),
            draws=self._spec.draws,
            images=self._images,
            batch_size=self._spec.batch_size,
            seed=seed,
            **self._common,
        )
        task = Task(
            inputs,
            inputs.key,
            (trained, found.key, found.clean) if found else (trained,),
            defense=target.label,
            source=source.label if source else "",
            attack=attack.label if attack else "none",
            eps=eps,
            cost=self._evaluating(self._images),
        )
        return self._add(task, target)

    def evaluate_ood(self, target: Choice, trained: str, other: OodSet, clean: str, seed: int) -> str:
        """One task for each target and out-of-distribution data set."""
        images = min(other.images, self._images)
        inputs = EvaluateInputs(
            target=trained,
            examples=None,
            foreign=OodRef(other.name, other.digest, other.scale),
            draws=self._spec.draws,
            images=images,
            batch_size=self._spec.batch_size,
            seed=seed,
            **self._common,
        )
        task = Task(
            inputs,
            inputs.key,
            (trained, clean),
            defense=target.label,
            ood=other.label,
            cost=self._evaluating(images),
        )
        return self._add(task, target)

    def _evaluating(self, images: int) -> float:
        return self._spec.draws * images / 3  # a backward pass costs about two forward ones

    def _add(self, task: Task, *plugins: Choice) -> str:
        if task.key not in self.tasks:
            net = _net(plugins[0]).name
            self.tasks[task.key] = replace(task, net=net, profile=self._profile(task.kind, plugins))
        return task.key

    def _profile(self, kind: TaskKind, plugins: tuple[Choice, ...]) -> str:
        """What takes the same time and memory, by the defense whose net runs and the attack, if one does."""
        names = (kind, *(plugin.label for plugin in plugins))
        if names not in self._profiles:
            spec = self._spec
            about = {
                "kind": kind,
                "plugins": [plugin.component.to_json() for plugin in plugins],
                "architecture": _net(plugins[0]).to_json(),
                "data": self._data.digest,
                "images": self._images,
                **spec.model_dump(include={"precision", "norm", "draws", "budget", "sweep", "threads", "batch_size"}),
            }
            self._profiles[names] = content_key(about)
        return self._profiles[names]


def _net(defense: Choice) -> Component:
    assert defense.net is not None, "defenses have a net"
    return defense.net

"""From a spec to a DAG of tasks with content keys. Knows neither torch nor disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, Literal, NamedTuple

from advbench.data.ood import OodSet
from advbench.grid.identity import DataIdentity, Identity
from advbench.grid.memory import gc_paused
from advbench.grid.spec import Choice, RunSpec
from advbench.keys import SCHEMA, content_key

TaskKind = Literal["train", "craft", "evaluate"]


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work.

    Attributes:
        kind: train, craft or evaluate.
        inputs: everything that the result depends on, as JSON values; `key` is their SHA-256.
        key: the name of the result in the store.
        needs: keys of the tasks whose artifacts it reads.
        label: for people.
        cost: forward-and-backward passes of an image that it makes, roughly; for progress and plans.
        net: the architecture that it runs.
        profile: alike in tasks that take the same time and memory: all but seed, radius and weights are the same.
    """

    kind: TaskKind
    inputs: Mapping[str, Any]
    key: str
    needs: tuple[str, ...]
    label: str
    cost: float
    net: str = ""
    profile: str = ""

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "needs": list(self.needs), "inputs": dict(self.inputs)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_json` described."""
        return cls(**{**values, "needs": tuple(values["needs"])})


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


class Judged(NamedTuple):
    """What an evaluation judges.

    Attributes:
        examples: key of the adversarial examples.
        clean: key of the evaluation of the same target on the images that they were made of.
        within: the radius to which examples of a minimal-norm attack are brought before they are judged.
    """

    examples: str
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


@gc_paused()
def make_plan(
    spec: RunSpec,
    defenses: tuple[Choice, ...],
    attacks: tuple[Choice, ...],
    identity: Identity,
    core_version: str,
    parameters: Mapping[str, int] | None = None,
) -> Plan:
    """Lay out a run: train each defense, craft on each as source, evaluate on each as target.

    Args:
        spec: a completed spec.
        defenses: its defenses, resolved.
        attacks: its attacks, resolved.
        identity: of its data; `ood` are the data sets of `spec.ood`.
        core_version: the version of advbench, which is in every key.
        parameters: how many weights each architecture has.
    """
    layout = _Layout(spec, identity.data, core_version)
    for seed in spec.seeds:
        trained = {choice.label: layout.train(choice, seed) for choice in defenses}
        clean = {t.label: layout.evaluate(t, trained[t.label], None, "clean", seed) for t in defenses}
        layout.cells += [Cell(target, target, None, 0.0, seed, clean[target.label]) for target in defenses]
        for other, target in product(identity.ood, defenses):
            key = layout.show(target, trained[target.label], other, clean[target.label], seed)
            layout.ood.append(OodCell(target, other.label, seed, key))
        for attack in attacks:
            crafted: dict[str, Swept] = {}
            for eps in filter(None, spec.eps):  # eps 0 is the clean row
                for source in (attack.init,) if attack.init else defenses:
                    before = crafted.get(source.label, Swept("", 0.0)) if spec.sweep else None
                    examples = layout.craft(source, layout.train(source, seed), attack, eps, seed, before)
                    crafted[source.label] = Swept(examples, eps)
                    within = eps if "minimal_norm" in attack.traits else None
                    alone = not attack.init and spec.affinity is not None and attack.label not in spec.affinity
                    for target in (source,) if alone else defenses:
                        what = f"{attack.label} {eps:.4g} from {source.label}"
                        judged = Judged(examples, clean[target.label], within)
                        key = layout.evaluate(target, trained[target.label], judged, what, seed)
                        layout.cells.append(Cell(target, source, attack, eps, seed, key))
    labels = {choice.label for choice in defenses}
    models = {which: key for which, key in layout.trained.items() if which[0] in labels}
    return Plan(spec, layout.tasks, tuple(layout.cells), models, parameters or {}, identity, tuple(layout.ood))


def merged(plans: Sequence[Plan]) -> Plan:
    """The tasks of several plans as one, which fills no cells of its own."""
    tasks = {key: task for plan in plans for key, task in plan.tasks.items()}
    return Plan(plans[0].spec, tasks, ())


class _Layout:
    """A plan in the making."""

    def __init__(self, spec: RunSpec, data: DataIdentity, core_version: str) -> None:
        self.tasks: dict[str, Task] = {}
        self.cells: list[Cell] = []
        self.ood: list[OodCell] = []
        self._spec = spec
        self._data = data
        self._images = min(spec.limit or data.test_count, data.test_count)
        self._common = {
            "schema": SCHEMA,
            "advbench": core_version,
            "data": {"name": data.name, "sha256": data.digest},
            "threads": spec.threads,
        }
        self._judged = {"images": self._images, "batch_size": spec.batch_size}
        self.trained: dict[tuple[str, int], str] = {}
        self._profiles: dict[tuple[str, ...], str] = {}

    def train(self, defense: Choice, seed: int) -> str:
        known = self.trained.get((defense.label, seed))
        if known is not None:
            return known
        inputs: dict[str, Any] = {
            "defense": defense.identity(),
            "architecture": dict(defense.architecture),
            "precision": self._spec.precision,
            "seed": seed,
        }
        needs: tuple[str, ...] = ()
        if defense.init:
            needs = (self.train(defense.init, seed),)
            inputs["init"] = needs[0]
        cost = (defense.passes or 0.0) * self._data.train_count
        key = self._add("train", inputs, needs, f"train {defense.label}, seed {seed}", cost, defense)
        self.trained[defense.label, seed] = key
        return key

    def craft(
        self, source: Choice, trained: str, attack: Choice, eps: float, seed: int, before: Swept | None = None
    ) -> str:
        """One task for each eps, in a sweep after the one before; of a minimal-norm attack one for all, without eps."""
        every = "minimal_norm" in attack.traits
        extra: dict[str, Any] = {} if self._spec.budget is None else {"budget": self._spec.budget}
        needs: tuple[str, ...] = (trained,)
        if before is not None and not every:
            extra["sweep"] = {"after": before.key or None, "eps": before.eps}
            needs = (*needs, before.key) if before.key else needs
        inputs = {
            "attack": attack.identity(),
            "source": trained,
            "norm": self._spec.norm,
            "eps": None if every else eps,
            "seed": seed,
            **self._judged,
            **extra,
        }
        label = f"craft {attack.label}{'' if every else f' {eps:.4g}'} on {source.label}, seed {seed}"
        passes = min(attack.passes or 0.0, self._spec.budget or math.inf)
        return self._add("craft", inputs, needs, label, passes * self._images, source, attack)

    def evaluate(self, target: Choice, trained: str, judged: Judged | None, what: str, seed: int) -> str:
        """One task for each target and set of examples; None for the clean images.

        That it also reads the evaluation of the clean images is not in the key, whose other inputs name it.
        """
        within = judged and judged.within
        inputs = {
            "target": trained,
            "examples": judged and judged.examples,
            **({} if within is None else {"within": {"norm": self._spec.norm, "eps": within}}),
            "draws": self._spec.draws,
            "seed": seed,
            **self._judged,
        }
        needs = (trained, judged.examples, judged.clean) if judged else (trained,)
        label = f"evaluate {target.label} on {what}, seed {seed}"
        return self._add("evaluate", inputs, needs, label, self._judging(self._images), target)

    def show(self, target: Choice, trained: str, other: OodSet, clean: str, seed: int) -> str:
        """One task for each target and out-of-distribution data set."""
        images = min(other.images, self._images)
        inputs = {
            "target": trained,
            "examples": None,
            "foreign": {"name": other.name, "sha256": other.digest, "scale": other.scale},
            "draws": self._spec.draws,
            "seed": seed,
            **self._judged,
            "images": images,
        }
        label = f"evaluate {target.label} on {other.label}, seed {seed}"
        return self._add("evaluate", inputs, (trained, clean), label, self._judging(images), target)

    def _judging(self, images: int) -> float:
        return self._spec.draws * images / 3  # a backward pass costs about two forward ones

    def _add(
        self, kind: TaskKind, inputs: dict[str, Any], needs: tuple[str, ...], label: str, cost: float, *plugins: Choice
    ) -> str:
        inputs = {"kind": kind, **inputs, **self._common}
        key = content_key(inputs)
        if key not in self.tasks:
            net = str(plugins[0].architecture["name"])
            self.tasks[key] = Task(kind, inputs, key, needs, label, cost, net, self._profile(kind, plugins))
        return key

    def _profile(self, kind: TaskKind, plugins: tuple[Choice, ...]) -> str:
        """What takes the same time and memory, by the defense whose net runs and the attack, if one does."""
        names = (kind, *(plugin.label for plugin in plugins))
        if names not in self._profiles:
            settings = {"precision": self._spec.precision, "norm": self._spec.norm, "draws": self._spec.draws}
            about = {
                "kind": kind,
                "plugins": [plugin.identity() for plugin in plugins],
                "architecture": dict(plugins[0].architecture),
                "budget": self._spec.budget,
                "sweep": self._spec.sweep,
                **settings,
                **self._judged,
                **self._common,
            }
            self._profiles[names] = content_key(about)
        return self._profiles[names]

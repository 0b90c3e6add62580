"""Attacks run to convergence: the effort is increased until accuracy no longer decreases."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.attacks.base import Attack, Threat
from advbench.attacks.craft import BATCH_SIZE, Crafted, craft
from advbench.errors import InputError
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.predictions import wilson
from advbench.grid.inputs import Converge
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.progress import OnProgress, Progress
from advbench.training.base import CheckpointSlot

EFFORT = "effort"  # axis of a composite attack: a common factor on the efforts of its components
TWICE = 2  # consecutive doublings whose fall has to be small
QUANTILE = 1.645  # normal quantile of a one-sided 95 % limit
CONTROL = "control"
RULE = Converge()
DRAWS = 100  # minimum number of fresh draws per evaluation of a random classifier

Factors = dict[str, int]


class Fall(NamedTuple):
    """A paired decrease in accuracy, as a fraction; negative for an increase."""

    value: float
    high: float  # upper end of the one-sided 95 % interval

    def small(self, rule: Converge, count: int) -> bool:
        """True if the fall is shown to be small, on `count` images."""
        return self.value < rule.fall and self.high < rule.margin(count)


def paired_fall(before: NDArray[np.float64], after: NDArray[np.float64]) -> Fall:
    """Fall in accuracy from one setting to another, run independently on the same images.

    The upper limit is that of Bonett and Price (2012) for paired proportions, which adds one image that fell and one
    that rose, so that it is positive even if none did; here also used for fractions of correct predictions.

    Args:
        before: probability of a correct prediction per image, `(N,)`; 0 or 1 for a deterministic classifier.
        after: the same at the other setting.
    """
    change = before - after
    count = len(change) + 2
    mean = change.sum() / count
    variance = max(0.0, (np.square(change).sum() + 2) / count - mean**2)
    return Fall(float(change.mean()), float(mean + QUANTILE * math.sqrt(variance / count)))


@dataclass(frozen=True)
class Converged:
    """Examples of an attack at the setting where it converged or reached a limit.

    Attributes:
        crafted: the examples, with the passes of all settings that were run.
        settings: final values of the hyperparameters that were increased.
        path: the settings in the order of their runs: doubled axis (empty for the first), hyperparameters, accuracy
            with its 95 % interval over images, forward passes per image, and the fall from the previous setting with
            its upper limit.
        control: for a random classifier, the change in accuracy when the first setting is run twice, and the upper
            limit of its size.
        unconverged: axes on which a limit was reached before convergence.
    """

    crafted: Crafted
    settings: dict[str, int]
    path: tuple[dict[str, Any], ...]
    control: Fall | None
    unconverged: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the search as JSON values, for a record."""
        control = {} if self.control is None else {"control": self.control._asdict()}
        found = {"settings": self.settings, "path": list(self.path), "unconverged": list(self.unconverged)}
        return {**found, **control}


def axes(attack: Attack, *, random: bool = True) -> tuple[str, ...]:
    """Axes on which the effort of an attack can be increased: hyperparameters or `effort`; empty if none."""
    if attack.parts:
        return (EFFORT,) if any(axes(part) for part in attack.parts.values()) else ()
    names = [attack.effort or "steps", *(["samples"] if random else []), "restarts"]
    values = attack.params.model_dump()
    return tuple(name for name in names if type(values.get(name)) is int)


def stronger(attack: Attack, factors: Mapping[str, int]) -> Attack:
    """The attack with hyperparameters multiplied by factors; for a composite attack, the effort of each component."""
    if attack.parts:
        factor = factors.get(EFFORT, 1)
        return attack.with_parts(
            {name: stronger(part, dict.fromkeys(axes(part)[:1], factor)) for name, part in attack.parts.items()}
        )
    values = attack.params.model_dump()
    return type(attack)(**{**values, **{name: values[name] * factor for name, factor in factors.items()}})


def converge(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    rule: Converge = RULE,
    *,
    seed: int = 0,
    stop_early: bool = False,
    batch_size: int = BATCH_SIZE,
    report: OnProgress = lambda _: None,
    checkpoint: CheckpointSlot | None = None,
    checkpoint_seconds: float = 30.0,
) -> Converged:
    """Increase the effort of an attack until accuracy is shown to stop decreasing (`Converge`).

    Each setting is run independently from the clean images: keeping the examples of weaker settings would produce a
    spurious fall. All are evaluated with the same draws, independent of those of attacks and evaluations.

    Args:
        attack: attack with its initial setting.
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        threat: norm and eps; examples of a minimal-norm attack are projected onto its ball.
        rule: criterion of convergence.
        seed: seed of the attack's random draws and noise.
        stop_early: as in `craft`.
        batch_size: number of images that are attacked together.
        report: callback with the work done and expected, in units of the first setting's cost per image.
        checkpoint: storage for finished settings, from which an interrupted search resumes.
        checkpoint_seconds: minimum time between two saved states, in seconds.

    Raises:
        InputError: the effort of the attack cannot be increased, or `craft` or `evaluate` raise.
        PluginError: `craft` or `evaluate` raise.
    """
    search = _Search(attack, model, x, y, threat, rule, seed, stop_early, batch_size, report)
    search.checkpoint, search.checkpoint_seconds = checkpoint, checkpoint_seconds
    return search.result()


@dataclass
class _Run:
    """Result of one setting."""

    right: NDArray[np.float64]  # probability of a correct prediction per image
    crafted: Crafted  # images are dropped once the search cannot return to them

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


@dataclass
class _Search:
    """A search along the axes, with the arguments of `converge`."""

    attack: Attack
    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    rule: Converge
    seed: int
    stop_early: bool
    batch_size: int
    report: OnProgress
    checkpoint: CheckpointSlot | None = None
    checkpoint_seconds: float = 30.0
    runs: dict[str, _Run] = field(default_factory=dict)  # by setting; the control run by `CONTROL`
    done: int = 0  # passes, in units of the first setting's
    path: list[dict[str, Any]] = field(default_factory=list)

    def result(self) -> Converged:
        """Run the search, resuming from a checkpoint if there is one."""
        random = not isinstance(self.model, Classifier) or self.model.stochastic
        along = axes(self.attack, random=random)
        if not axes(self.attack):
            expected = "an attack with a number of steps, samples or restarts"
            raise InputError(f"attack {type(self.attack).__name__} with --converge", expected=expected)
        self._load()
        self._saved = time.monotonic()
        here: Factors = dict.fromkeys(along, 1)
        ahead = len(along) * self._ahead(here, TWICE)
        first = self._run(here, ahead + random)
        self._note("", here, first, None)
        control = None
        if random:
            again = self._run(here, ahead, control=True)
            change, back = paired_fall(first.right, again.right), paired_fall(again.right, first.right)
            control = Fall(change.value, max(change.high, back.high))
        unconverged = []
        for index, axis in enumerate(along):
            last, small = here, 0
            while small < TWICE:
                after = {**last, axis: 2 * last[axis]}
                over = after[axis] > self.rule.limit or math.prod(after.values()) > self.rule.passes
                if over or not self._allowed(after):
                    unconverged.append(axis)
                    here = last
                    break
                later = (len(along) - index - 1) * self._ahead(here, TWICE)
                found = self._run(after, self._ahead(after, TWICE - small - 1) + later, keep=(here, last))
                fall = paired_fall(self._known(last).right, found.right)
                self._note(axis, after, found, fall)
                small = small + 1 if fall.small(self.rule, len(self.x)) else 0
                last, here = after, here if small else after
        runs = [run.crafted for run in self.runs.values()]
        passes = sum(run.forward_passes for run in runs), sum(run.backward_passes for run in runs)
        best = self._known(here).crafted
        crafted = replace(best, forward_passes=passes[0], backward_passes=passes[1])
        return Converged(crafted, self._settings(here), tuple(self.path), control, tuple(unconverged))

    def _allowed(self, factors: Factors) -> bool:
        """False if a hyperparameter would exceed a bound of its own."""
        try:
            stronger(self.attack, factors)
        except InputError:
            return False
        return True

    def _ahead(self, factors: Factors, doublings: int) -> int:
        """Expected passes of several doublings of an axis within the rule, in units of the first setting's."""
        costs = (math.prod(factors.values()) << k for k in range(1, doublings + 1))
        return sum(cost for cost in costs if cost <= self.rule.passes)

    def _known(self, factors: Factors) -> _Run:
        return self.runs[_name(factors)]

    def _run(self, factors: Factors, ahead: int, *, keep: Iterable[Factors] = (), control: bool = False) -> _Run:
        """Run a setting unless it is done; `ahead` is the expected work afterwards, `keep` are settings to keep."""
        name = CONTROL if control else _name(factors)
        cost = math.prod(factors.values())
        if name not in self.runs:

            def watch(progress: Progress) -> None:
                step = self.done * progress.total + cost * progress.step
                values = {"factor": float(cost)}
                self.report(Progress(step, (self.done + cost + ahead) * progress.total, values))

            how: dict[str, Any] = {"stop_early": self.stop_early, "batch_size": self.batch_size, "report": watch}
            seed = derive(self.seed, CONTROL) if control else self.seed
            attack = stronger(self.attack, factors)
            crafted = craft(attack, self.model, self.x, self.y, self.threat, seed=seed, **how)
            self.runs[name] = _Run(self._right(crafted.images), crafted)
            kept = {name, *map(_name, keep)} - {CONTROL}
            for other, run in self.runs.items():
                if other not in kept and not (control and other == _name(factors)):
                    run.crafted = replace(run.crafted, images=torch.empty(0))
            self._save()
        self.done += cost
        return self.runs[name]

    def _right(self, images: Tensor) -> NDArray[np.float64]:
        rule, random = self.rule, not isinstance(self.model, Classifier) or self.model.stochastic
        sets = math.ceil(DRAWS / rule.draws) if random else 1
        seeds = [derive(self.seed, "convergence", k) for k in range(sets)]
        found = [
            evaluate(self.model, images, self.y, rule.draws, seed=seed, batch_size=self.batch_size) for seed in seeds
        ]
        mean: NDArray[np.float64] = np.mean([each.ensemble_correct for each in found], axis=0, dtype=np.float64)
        return mean

    def _note(self, axis: str, factors: Factors, run: _Run, fall: Fall | None) -> None:
        """Add a setting to the path."""
        self.path.append(
            {
                "axis": axis,
                "settings": self._settings(factors),
                "accuracy": run.accuracy,
                "interval": list(wilson(run.accuracy, len(self.x))),
                "forward_passes": run.crafted.forward_passes,
                **({} if fall is None else {"fall": fall.value, "fall_high": fall.high}),
            }
        )

    def _settings(self, factors: Factors) -> dict[str, int]:
        start = {EFFORT: 1, **self.attack.params.model_dump()}
        return {axis: start[axis] * factor for axis, factor in factors.items()}

    def _save(self) -> None:
        if self.checkpoint is None or time.monotonic() - self._saved < self.checkpoint_seconds:
            return
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, run in self.runs.items():
            numbers = {each.name: getattr(run.crafted, each.name) for each in fields(run.crafted)}
            tensors[f"right {name}"] = torch.from_numpy(run.right)
            tensors[f"images {name}"] = numbers.pop("images")
            values[name] = numbers
        self.checkpoint.save(tensors, {"runs": values})
        self._saved = time.monotonic()

    def _load(self) -> None:
        saved = self.checkpoint.load() if self.checkpoint else None
        tensors, values = saved or ({}, {"runs": {}})
        for name, numbers in values["runs"].items():
            crafted = Crafted(tensors[f"images {name}"].to(self.x.device), **numbers)
            self.runs[name] = _Run(tensors[f"right {name}"].numpy(), crafted)


def _name(factors: Factors) -> str:
    return " ".join(f"{axis}x{factor}" for axis, factor in factors.items())

"""Deep ensembles: independently trained nets with averaged softmax outputs."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from advbench.errors import InputError
from advbench.models import Classifier, MixturePosterior, SamplePosterior, check_effect, export_classifier, mixture
from advbench.progress import Progress
from advbench.registry import registry
from advbench.training import Data, Defense, Field, Paper, TrainContext, check_data, derive, isolated_rng
from advbench_defenses._inner import InnerDefense, InnerParams, Reset


class DeepEnsemble(InnerDefense):
    """Several nets trained independently by one method, each with its own initial weights and data order.

    Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    Algorithm 1: a draw of the classifier is a uniformly random member, and predictions are the mean of the softmax
    outputs. Members of a deterministic method are enumerated in evaluations and in attacks that average over draws. For
    a random method, the ensemble is the mixture of the members' posteriors.

    Member k is trained by the method with a seed derived from the ensemble's seed and k, including its `init_from`.
    Each member has its own running statistics of batch norm. Departure: the paper's optional adversarial training on
    FGSM and clean images is not included; `method` may be any other adversarial training.
    """

    version = "1"
    paper = Paper(
        title="Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
        authors="Lakshminarayanan, Pritzel, Blundell",
        year=2017,
        link="https://arxiv.org/abs/1612.01474",
    )

    class Params(InnerParams):
        """Hyperparameters of a deep ensemble."""

        members: int = Field(default=5, ge=1, description="number M of nets; paper: 5")
        method: str = Field(
            default="erm", description="name of the training method of each member; paper: plain training"
        )

    presets = {"paper": {"members": 5}}
    sources = {"section 3": "members"}
    accepted = "a method other than an ensemble", "increase members instead"
    params: Params

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> Params:
        """The hyperparameters, with those of the method resolved as well.

        Raises:
            InputError: a hyperparameter of the ensemble or of the method is invalid, or members cannot be trained
                independently.
        """
        own = super().resolve(values, dataset)
        assert isinstance(own, cls.Params)
        start = own.params.get("init_from")
        if start and ("@" in start or issubclass(registry().load("defense", start), DeepEnsemble)):
            expected = "name of a deterministic method, without label"
            raise InputError(f"init_from in params of {cls.__name__}", expected=expected, got=repr(start))
        if cls.method(own.method)(**own.params).passes_per_image() == 0:
            remedy = "otherwise all members would be equal"
            raise InputError(
                f"method of {cls.__name__}", expected="a method that trains", got=own.method, remedy=remedy
            )
        return own

    @property
    def parts(self) -> Mapping[str, Defense]:
        """The method, and the one that provides its initial weights."""
        start = getattr(self.inner.params, "init_from", None)
        return {**super().parts, **({start: self.method(start)()} if start else {})}

    def passes_per_image(self) -> float | None:
        """Passes of all members, including those for their initial weights."""
        each = [part.passes_per_image() for part in self.parts.values()]
        return None if None in each else self.params.members * sum(filter(None, each))

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train one member after another; see `advbench.training.Defense.fit`.

        Members start from `context.fresh`, or without it from the module with each layer reset by `reset_parameters`;
        the weights of `module` are not used.

        Raises:
            InputError: as in `Defense.fit`, or a layer cannot be reset.
        """
        check_data(module, data)
        method, context = self.for_dataset(data.name), context or TrainContext()
        own = copy.deepcopy(module).cpu()
        check_effect(type(self).__name__, Classifier(own, SamplePosterior(own)), data)
        device, count, saved = context.resources.device, method.params.members, _Saved(context)
        for k in range(len(saved.members), count):
            seed = derive(context.seed, "member", k)

            def report(progress: Progress, k: int = k) -> None:
                step, total, values = progress
                context.progress(Progress(k * total + step, count * total, values))

            net = (context.fresh or Reset(own))(derive(seed, "init"))
            checkpoint = saved if context.checkpoint else None
            apart = dataclasses.replace(
                context, seed=seed, progress=report, checkpoint=checkpoint, init=None, watch=None
            )
            with isolated_rng(derive(seed, "fit"), device, everywhere=True):
                saved.finish(method.inner.fit(net, data, apart))
        return mixture(own, saved.members).to(device)

    def statistics(self, clf: Classifier) -> dict[str, Any]:
        """Statistics of each member, if the method has any."""
        assert isinstance(clf.posterior, MixturePosterior), "created by fit"
        components = [clf.posterior.component(k) for k in range(len(clf.posterior))]
        members = [dict(self.inner.statistics(Classifier(clf.module, component))) for component in components]
        return {"members": members} if any(members) else {}


class _Saved:
    """Trained members, and the checkpoint of the member in training, saved together.

    Attributes:
        members: result of `export_classifier` for each member.
    """

    def __init__(self, context: TrainContext) -> None:
        self.members: list[tuple[Mapping[str, Tensor], Mapping[str, Any]]] = []
        self._slot = context.checkpoint
        self._seconds = context.checkpoint_seconds
        self._current: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        saved = self._slot.load() if self._slot else None
        if saved is not None:
            tensors, values = saved
            self.members = [(_below(f"{k}.", tensors), each) for k, each in enumerate(values["members"])]
            if values["current"] is not None:
                self._current = _below("current.", tensors), values["current"]
        self._next = time.monotonic() + self._seconds

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """State of the member in training, if one was saved."""
        return self._current

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save the state of the member in training."""
        self._write({f"current.{name}": tensor for name, tensor in tensors.items()}, values)

    def finish(self, clf: Classifier) -> None:
        """Add the member that was in training."""
        tensors, values = export_classifier(clf)
        self.members.append(({name: tensor.detach().cpu() for name, tensor in tensors.items()}, values))
        self._current = None
        if time.monotonic() >= self._next:
            self._write({}, None)

    def _write(self, current: Mapping[str, Tensor], values: Mapping[str, Any] | None) -> None:
        if self._slot is None:
            return
        done = {f"{k}.{name}": each for k, (tensors, _) in enumerate(self.members) for name, each in tensors.items()}
        self._slot.save({**done, **current}, {"members": [values for _, values in self.members], "current": values})
        self._next = time.monotonic() + self._seconds


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

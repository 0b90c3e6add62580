"""Deep ensembles: nets trained apart, whose softmax outputs are averaged."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from advbench import training
from advbench.errors import InputError
from advbench.models import Classifier, MixturePosterior, SamplePosterior, check_effect, export_classifier, mixture
from advbench.progress import Progress
from advbench.registry import registry
from advbench.training import Data, Defense, Field, Paper, TrainContext, check_data, derive, isolated_rng


class DeepEnsemble(Defense):
    """Several nets trained apart by one method, from initial weights and in data orders of their own.

    Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    Algorithm 1: a draw of the classifier is one member, each as likely, and predictions are the mean of their softmax
    outputs. Members of a deterministic method are enumerated by evaluation and by attacks. Of a random one the ensemble
    is the mixture of the members' posteriors.

    Member k is what the method trains under the seed that derives from the ensemble's and k, its `init_from` included.
    Batch norm's running statistics are each member's own. Departure: the paper's adversarial training on FGSM beside
    the clean images is optional there and not done here; `method` may be adversarial training of any other kind.
    """

    version = "1"
    paper = Paper(
        title="Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
        authors="Lakshminarayanan, Pritzel, Blundell",
        year=2017,
        link="https://arxiv.org/abs/1612.01474",
    )

    class Params(training.Params):
        """Hyperparameters of a deep ensemble."""

        members: int = Field(default=5, ge=1, description="number of nets M; paper: 5")
        method: str = Field(
            default="erm", description="name of the training method of each member; paper: plain training"
        )
        params: dict[str, Any] = Field(
            default={}, description="hyperparameters of that method, or its `preset`, where not its defaults"
        )

    presets = {"paper": {"members": 5}}
    sources = {"section 3": "members"}
    params: Params

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.inner = _method(self.params.method)(**self.params.params)

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> Params:
        """The hyperparameters, those of the method resolved as well.

        Raises:
            InputError: also of the method's hyperparameters, or where the method is none that can be trained apart.
        """
        own = super().resolve(values, dataset)
        assert isinstance(own, cls.Params)
        method = _method(own.method)
        try:
            resolved = method.resolve(own.params, dataset).model_dump(mode="json")
        except InputError as error:
            raise InputError(f"params of {cls.__name__}: {error}") from error
        start = resolved.get("init_from")
        if start and ("@" in start or issubclass(registry().load("defense", start), DeepEnsemble)):
            expected = "the name of a deterministic method, without label"
            raise InputError(f"init_from in params of {cls.__name__}", expected=expected, got=repr(start))
        if method(**resolved).passes_per_image() == 0:
            remedy = "its members would all be the same"
            raise InputError(f"method of {cls.__name__}", expected="one that trains", got=own.method, remedy=remedy)
        return own.model_copy(update={"params": resolved})

    @property
    def parts(self) -> Mapping[str, Defense]:
        """The method, and the one whose weights it starts from."""
        start = getattr(self.inner.params, "init_from", None)
        return {self.params.method: self.inner, **({start: _method(start)()} if start else {})}

    def passes_per_image(self) -> float | None:
        """Those of all members, and of what they start from."""
        each = [part.passes_per_image() for part in self.parts.values()]
        return None if None in each else self.params.members * sum(filter(None, each))

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train one member after another; see `advbench.training.Defense.fit`.

        Members start from `context.fresh`. Without it they start from the module's layers, each reset by its own
        `reset_parameters`; the weights of `module` are not used.

        Raises:
            InputError: also where a layer cannot be reset.
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

            net = (context.fresh or _Reset(own))(derive(seed, "init"))
            checkpoint = saved if context.checkpoint else None
            apart = dataclasses.replace(context, seed=seed, progress=report, checkpoint=checkpoint, init=None)
            with isolated_rng(derive(seed, "fit"), device, everywhere=True):
                saved.finish(method.inner.fit(net, data, apart))
        return mixture(own, saved.members).to(device)

    def statistics(self, clf: Classifier) -> dict[str, Any]:
        """Those of each member, where the method has some."""
        assert isinstance(clf.posterior, MixturePosterior), "fit made it"
        components = [clf.posterior.component(k) for k in range(len(clf.posterior))]
        members = [dict(self.inner.statistics(Classifier(clf.module, component))) for component in components]
        return {"members": members} if any(members) else {}


def _method(name: str) -> type[Defense]:
    """The class of a method whose results can be members.

    Raises:
        InputError: there is none of that name, or its nets cannot be members.
    """
    method: type[Defense] = registry().load("defense", name)
    if issubclass(method, DeepEnsemble):
        remedy = "raise members instead"
        raise InputError("method of DeepEnsemble", expected="one that is no ensemble itself", got=name, remedy=remedy)
    return method


class _Reset:
    """Makes nets like a module whose layers are initialised anew.

    Raises:
        InputError: a layer has weights of its own and cannot be initialised anew.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, seed: int) -> nn.Module:
        net = copy.deepcopy(self._module)
        with isolated_rng(seed, "cpu", everywhere=True):
            for name, layer in reversed(list(net.named_modules())):  # what holds other layers has the last word
                reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
                if reset is not None:
                    reset()
                elif next(layer.parameters(recurse=False), None) is not None:
                    raise InputError(
                        f"layer {name or 'at the top'} of the net ({type(layer).__name__})",
                        expected="a method reset_parameters, by which each member starts from weights of its own",
                        remedy="write one, or give TrainContext(fresh=...), which makes the net from a seed",
                    )
        return net


class _Saved:
    """Members that are trained, and the checkpoint slot of the one in training: its state is saved beside them.

    Attributes:
        members: what `export_classifier` gave of each.
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
        """The state of the member in training, if one was saved."""
        return self._current

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save it."""
        self._write({f"current.{name}": tensor for name, tensor in tensors.items()}, values)

    def finish(self, clf: Classifier) -> None:
        """Keep the member that was in training."""
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

"""Uniform mixtures: a draw is a draw of one of several nets of the same architecture, as in an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import InputError
from advbench.keys import derive, isolated_rng
from advbench.models.classifier import Classifier
from advbench.models.posterior import PointPosterior, Posterior, SamplePosterior, Weights
from advbench.models.saving import kind_of, stored_noise
from advbench.registry import registry

BUFFERS = "buffers."  # prefix of the stacked buffers in an export


class MixturePosterior(Posterior):
    """Uniform mixture of posteriors over the weights of a module, each with its own buffers.

    A draw is a draw of one component, including its running statistics of batch norm. If all components have the same
    number of members, the mixture can be enumerated.

    Args:
        module: the module whose weights are drawn.
        components: the posteriors; by default a point mass at the module's weights.
        buffers: the module's buffers for each component, by name; by default its own.

    Attributes:
        components: the posteriors.
    """

    kind = "mixture"

    def __init__(
        self, module: nn.Module, components: Sequence[Posterior] = (), buffers: Sequence[Weights] = ()
    ) -> None:
        super().__init__(module)
        self._within = [module]  # in a list, so that it is not registered as a submodule
        self._names: list[str] = []
        self._take(components or [SamplePosterior(module)], buffers or [dict(module.named_buffers())])

    def _take(self, components: Sequence[Posterior], buffers: Sequence[Weights]) -> None:
        self.components = nn.ModuleList(components)
        self._names = [name for name, _ in self._within[0].named_buffers()]
        for index, name in enumerate(self._names):
            stacked = torch.stack([each[name].detach() for each in buffers])
            self.register_buffer(f"buffer{index}", stacked)

    def __len__(self) -> int:
        return len(self.components)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """True if there are several components, or a random one."""
        return len(self) > 1 or self.component(0).stochastic

    def component(self, index: int) -> Posterior:
        """One of the posteriors."""
        found: Posterior = self.components[index]  # type: ignore[assignment]
        return found

    @property
    def members(self) -> int | None:
        """Number of members of all components together; None if one cannot be enumerated or their numbers differ."""
        counts = {self.component(index).members for index in range(len(self))}
        each = counts.pop()
        return None if counts or each is None else each * len(self)

    def member(self, k: int) -> Weights:
        """The k-th member; members of all components take turns."""
        position, index = divmod(k, len(self))
        return {**self.component(index).member(position), **self.buffers_of(index)}

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """True if every component is symmetric."""
        return all(self.component(index).symmetric for index in range(len(self)))

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Promise that no component changes in the block."""
        with ExitStack() as stack:
            for index in range(len(self)):
                stack.enter_context(self.component(index).fixed())
            yield

    def draw(self, seed: int) -> Weights:
        """The draw of a seed; the negative seed gives the mirror image in the same component."""
        index = derive(abs(seed), "component") % len(self)
        return {**self.component(index).draw(seed), **self.buffers_of(index)}

    def sample(self, generator: torch.Generator) -> Weights:
        """A draw of a random component, with its buffers."""
        index = int(torch.randint(len(self), (1,), generator=generator, device=generator.device))
        return {**self.component(index).sample(generator), **self.buffers_of(index)}

    def buffers_of(self, index: int) -> dict[str, Tensor]:
        """Copies of the buffers of a component, which the module may change."""
        return {name: self.get_buffer(f"buffer{place}")[index].clone() for place, name in enumerate(self._names)}

    def trainable(self) -> list[nn.Parameter]:
        """Empty: components are trained separately, before they are mixed."""
        return []

    def export(self) -> dict[str, Tensor]:
        """Exports of all components, prefixed by number and kind, and their stacked buffers, `(components, *shape)`."""
        parts = {
            f"{index}.{kind_of(self.component(index))}.{name}": tensor
            for index in range(len(self))
            for name, tensor in self.component(index).export().items()
        }
        return parts | {BUFFERS + name: self.get_buffer(f"buffer{place}") for place, name in enumerate(self._names)}

    def restore(self, tensors: Weights) -> None:
        """Load any number of components of any kind."""
        found: dict[int, tuple[str, dict[str, Tensor]]] = {}
        for name, tensor in tensors.items():
            number, _, rest = name.partition(".")
            if number.isdecimal() and len(number) < 9:
                kind, _, inner = rest.partition(".")
                known, parts = found.setdefault(int(number), (kind, {}))
                if kind in (self.kind, PointPosterior.kind) or known != kind:
                    raise RuntimeError(f"component {number} of the mixture is of kind {kind!r}")
                parts[inner] = tensor
        if not found or sorted(found) != list(range(len(found))):
            raise RuntimeError("components of the mixture are missing")
        module = self._within[0]
        buffers: list[dict[str, Tensor]] = [{} for _ in found]
        for name, own in module.named_buffers():
            stacked = tensors[BUFFERS + name]
            if stacked.shape != (len(found), *own.shape):
                raise RuntimeError(f"size mismatch for {name}: {tuple(stacked.shape)} of {len(found)} components")
            for each, value in zip(buffers, stacked.to(own), strict=True):
                each[name] = value
        self._take([_component(module, *found[index]) for index in range(len(found))], buffers)


def mixture(module: nn.Module, members: Sequence[tuple[Weights, Mapping[str, Any]]]) -> Classifier:
    """Uniform mixture of classifiers of one architecture.

    Args:
        module: a module of their architecture, on the CPU; it becomes part of the mixture.
        members: the result of `export_classifier` for each, on the CPU.

    Raises:
        InputError: the noise inside their modules differs, or a member is itself a mixture.
    """
    noise = members[0][1]["noise"]
    if any(values["noise"] != noise for _, values in members):
        raise InputError("members of a mixture", expected="the same noise inside each")
    if any(values["posterior"] == MixturePosterior.kind for _, values in members):
        raise InputError("members of a mixture", expected="classifiers that are not mixtures themselves")
    buffers = [
        {name: tensors[f"buffer.{name}"].to(own, copy=True) for name, own in module.named_buffers()}
        for tensors, _ in members
    ]
    with isolated_rng(0, "cpu"):  # the initial weights are replaced
        components = [_component(module, values["posterior"], tensors) for tensors, values in members]
    posterior = MixturePosterior(module, components, buffers)
    return Classifier(module.eval(), posterior, noise=stored_noise(noise)).requires_grad_(False)


def _component(module: nn.Module, kind: str, tensors: Weights) -> Posterior:
    if kind == PointPosterior.kind:  # a point uses the weights of the module, which all components share
        kind = SamplePosterior.kind
        tensors = {f"samples.{n.removeprefix('value.')}": t[None] for n, t in tensors.items() if n.startswith("value.")}
    component: Posterior = registry().load("posterior", kind)(module)
    component.restore(tensors)
    return component

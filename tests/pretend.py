"""A pretended accelerator: tensors of a device of their own, computed on the CPU, under torch's rules for devices.

`pretend:0` is a device type that torch knows (its PrivateUse1 backend): autograd, modules and device checks treat its
tensors as those of a GPU. A tensor on it wraps a CPU tensor that is computed eagerly; a dispatch mode refuses operands
on different devices, as a GPU does, and counts what would cost time there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE = "pretend:0"
_aten = torch.ops.aten

# What must know values of the device before the host can go on.
_WAITS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten._unique2.default,
    _aten.repeat_interleave.Tensor,
}
_INDEXES = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_ALLOCATIONS = {_aten.detach.default, _aten.alias.default, _aten.is_pinned.default} | {
    getattr(packet, name)
    for packet in (_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided)
    for name in packet.overloads()
}


class Pretended(Tensor):
    """A tensor on the pretended device, and the CPU tensor that holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
            requires_grad=False,
        )
        made.held = held.detach()
        return made

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on {DEVICE} outside of a `pretended` block")


class _Generator(torch.Generator):
    """A generator on the pretended device: a CPU generator that says so.

    An operation sees a generator without its Python class, so generators of the device are known by their seeds.
    """

    seeds: ClassVar[set[int]] = set()

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != NAME:
            return _real_generator(device)
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return torch.device(DEVICE)

    def manual_seed(self, seed: int) -> _Generator:
        self.seeds.add(seed)
        super().manual_seed(seed)
        return self


_real_generator = torch.Generator


class _Backend:
    """What torch asks of a device's module: one device, one default generator."""

    default: torch.Generator = torch.Generator()
    blocks = 0  # that are entered; the device is there in these alone

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.blocks > 0

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.default.manual_seed(seed)

    manual_seed = manual_seed_all

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return self.default.get_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        self.default.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, _Backend())


@dataclass
class Counts:
    """What a block did on the pretended device.

    Attributes:
        kernels: operations that compute on it.
        waits: times that the host waited for a value.
        copies: tensors copied onto it.
        random: operations that drew random numbers on it.
        by: waits by operation.
    """

    kernels: int = 0
    waits: int = 0
    copies: int = 0
    random: int = 0
    by: Counter[str] = field(default_factory=Counter)


class _Mode(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        wrapped = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        wanted = kwargs.get("device")
        there = bool(wrapped) if wanted is None else torch.device(wanted).type == NAME
        if not wrapped and not there:
            return func(*args, **kwargs)
        if func not in _COPIES and (strangers := [t for t in tensors if not isinstance(t, Pretended) and t.ndim]):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {DEVICE} and {strangers[0].device} in {func}"
            )
        self._count(func, args, there, wrapped, tensors)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        self._check_generator(func, kwargs, there)
        with self._own_random_state(func, there):
            out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func is _aten.copy_.default:
            return args[0]
        if not there:
            return out.clone() if isinstance(out, Tensor) and any(out is _held(t) for t in wrapped) else out
        made = tree_map(lambda leaf: Pretended(leaf) if isinstance(leaf, Tensor) else leaf, out)
        return return_and_correct_aliasing(func, args, kwargs, made)

    def _count(self, func: Any, args: Any, there: bool, wrapped: list[Any], tensors: list[Any]) -> None:
        counts = self.counts
        if func in _COPIES:
            target_there = isinstance(args[0], Pretended) if func is _aten.copy_.default else there
            if len(wrapped) == len(tensors) and target_there:
                counts.kernels += 1
            elif target_there:
                counts.copies += 1
            else:
                self._wait(func)
            return
        if func in _INDEXES and any(
            isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        ):
            self._wait(func)
        if func in _WAITS:
            self._wait(func)
        if not func.is_view and func not in _ALLOCATIONS:
            counts.kernels += 1

    def _wait(self, func: Any) -> None:
        self.counts.waits += 1
        self.counts.by[str(func)] += 1

    def _check_generator(self, func: Any, kwargs: dict[str, Any], there: bool) -> None:
        given = kwargs.get("generator")
        if there and given is not None and given.initial_seed() not in _Generator.seeds:
            raise RuntimeError(f"Expected a {NAME!r} device type for generator but found {given.device.type!r}")

    @contextmanager
    def _own_random_state(self, func: Any, there: bool) -> Iterator[None]:
        """The device's default generator in place of the CPU's, which operations without a generator use."""
        if not there or torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        self.counts.random += 1
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(_Backend.default.get_state())
        try:
            yield
        finally:
            _Backend.default.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Pretended) else leaf


@contextmanager
def pretended() -> Iterator[Counts]:
    """Run a block in which `pretend:0` is a device; counts what happens on it."""
    counts = Counts()
    _Backend.blocks += 1
    try:
        with mock.patch.object(torch, "Generator", _Generator), _Mode(counts):
            yield counts
    finally:
        _Backend.blocks -= 1


def plain(tensor: Tensor) -> Tensor:
    """Its values on the CPU, without counting."""
    held: Tensor = _held(tensor.detach())
    return held

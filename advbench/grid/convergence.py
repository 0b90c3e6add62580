"""One cell along one axis: does the accuracy stop falling as an attack gets stronger, or draws get more?"""

from __future__ import annotations

from collections.abc import Sequence

from advbench.errors import InputError
from advbench.grid.spec import RunSpec
from advbench.registry import registry

VALUES: dict[str, tuple[int, ...]] = {  # along each axis, unless others are asked for
    "samples": (1, 2, 5, 10, 20, 50),
    "steps": (1, 2, 5, 10, 20, 50, 100),
    "restarts": (1, 2, 5, 10),
    "draws": (1, 2, 5, 10, 20, 50, 100),
}


def along(spec: RunSpec, axis: str, values: Sequence[int] = ()) -> list[tuple[int, RunSpec]]:
    """The runs of a curve, at the largest eps of the spec.

    Args:
        spec: the cell or cells; what it says of the axis itself gives way.
        axis: one of `VALUES`.
        values: along it; by default those of `VALUES`.

    Raises:
        InputError: an unknown axis, an attack that lacks it, or values that are not whole numbers >= 1.
    """
    if axis not in VALUES:
        raise InputError("--over", expected=f"one of {', '.join(VALUES)}", got=repr(axis))
    chosen = sorted(set(values or VALUES[axis]))
    if chosen[0] < 1 or len(chosen) < 2:
        raise InputError("--values", expected="at least two whole numbers >= 1", got=",".join(map(str, values)))
    if spec.budget is not None or spec.sweep:
        option = "--sweep" if spec.budget is None else "--budget"
        raise InputError(option, expected=f"none in a curve, which it would bend along {axis}")
    base = spec.model_copy(update={"eps": spec.eps[-1:], "affinity": ()})  # no defense on another's examples
    if axis == "draws":
        return [(value, base.model_copy(update={"draws": value})) for value in chosen]
    for label in spec.attacks:
        name = spec.named(label)
        fields = registry().load("attack", name).Params.model_fields
        if axis not in fields:
            known = ", ".join(a for a in VALUES if a in fields or a == "draws")
            raise InputError(f"--over {axis}", expected=f"an axis of attack {name!r}: {known}", got=repr(axis))
    return [(value, _with(base, axis, value)) for value in chosen]


def _with(spec: RunSpec, name: str, value: int) -> RunSpec:
    settings = {**spec.set, **{label: {**spec.set.get(label, {}), name: value} for label in spec.attacks}}
    return spec.model_copy(update={"set": settings})

"""Descriptions for people: a plan and its cost, a plugin's hyperparameters, the state of an installation."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
from tabulate import tabulate

from advbench.cli.display import duration
from advbench.data.datasets import DEFAULT_ROOT
from advbench.errors import AdvbenchError, MissingExtraError, unknown_name
from advbench.grid.estimates import measured
from advbench.grid.plan import Plan
from advbench.grid.queue import longest_chain
from advbench.grid.scheduler import failed_before, outstanding
from advbench.registry import KINDS, Entry, registry
from advbench.registry.optional import require, written_over
from advbench.registry.params import Configurable
from advbench.store.records import Store
from advbench.store.storage import BRIEF

EXTRAS = {"ray": "ray", "s3fs": "s3", "mlflow": "mlflow"}  # libraries and what installs them


def plan_lines(plan: Plan, store: Store, *, every_task: bool) -> Iterator[str]:
    """Tasks by kind: how many, how many have to run, what those cost by passes, and by what such tasks took before."""
    waiting = outstanding(plan, store)
    known = measured(store.storage)
    rows = []
    for kind in ("train", "craft", "evaluate", "all"):
        all_of = [task for task in plan.tasks.values() if kind in ("all", task.kind)]
        to_do = [task for task in all_of if task.key in waiting]
        peaks = [peak for task in to_do if (like := known.of(task)) and (peak := like.peak)]
        passes = f"{sum(task.cost for task in to_do):,.0f}"
        rows.append([kind, len(all_of), len(to_do), passes, _time(known.total(to_do)), _size(max(peaks, default=0))])
    headers = ["task", "planned", "to run", "passes of an image", "time on one worker", "memory of a task"]
    yield tabulate(rows, headers=headers, tablefmt="github", colalign=("left", *["right"] * 5))
    yield f"{len(plan.cells)} rows in results.csv; what is planned and not to run is done already or not needed"
    failed = failed_before(plan, waiting, store)
    if failed:
        yield f"{len(failed)} of the tasks to run failed in an earlier run; only --retry-failed tries them again"
    if known.total(waiting.values()) is not None and waiting:
        chain = _time(longest_chain(waiting, known.weight))
        yield f"the longest chain of tasks takes {chain}, on any number of workers"
    if every_task:
        for task in waiting.values():
            needs = ", ".join(need[:12] for need in task.needs if need in waiting)
            took = _time(known.seconds(task))
            yield f"{task.key[:12]}  {task.label}  ({took}{f'; after {needs}' if needs else ''})"


def _time(seconds: float | None) -> str:
    return "not measured" if seconds is None else duration(seconds)


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count else "not measured"


def plugin_lines(name: str) -> Iterator[str]:
    """A plugin's description, and each hyperparameter with type, default, presets, unit and source.

    Raises:
        InputError: no defense or attack has that name.
    """
    entries: list[Entry] = [e for e in registry().entries() if e.kind in ("defense", "attack")]
    known = (kind for kind in KINDS[:2] if registry().knows(kind, name))
    kind = next(known, None)
    if kind is None:
        raise unknown_name("defense or attack", name, [e.shown for e in entries])
    entry = registry().find(kind, name)
    cls: type[Configurable] = registry().load(entry.kind, name)
    yield f"{entry.kind} {name}, {entry.distribution} {entry.version}"
    yield ""
    yield inspect.cleandoc(cls.__doc__ or entry.summary)
    for trait in ("norms", "minimal_norm"):
        value = getattr(cls, trait, None)
        if value is not None:
            yield ""
            yield f"{trait}: {', '.join(sorted(value)) if isinstance(value, frozenset) else value}"
    fields = cls.Params.model_fields
    if not fields:
        yield ""
        yield "No hyperparameters."
    for field_name, info in fields.items():
        yield ""
        yield f"{field_name} = {_shown(info.get_default(call_default_factory=True))}  ({_type(info)})"
        yield f"    {info.description or 'not described'}"
        for preset, values in cls.presets.items():
            if field_name in values:
                yield f"    preset {preset}: {_shown(values[field_name])}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _type(info: pydantic.fields.FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(m, word)}" for m in info.metadata for word in ("ge", "gt", "le", "lt") if hasattr(m, word)
    ]
    return ", ".join([_type_name(info.annotation), *bounds])


def _type_name(kind: Any) -> str:
    """A type as people write it, without the bounds of what it holds."""
    arguments = [argument for argument in get_args(kind) if argument is not ...]
    if get_origin(kind) is Annotated:
        return _type_name(arguments[0])
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, arguments))
    if get_origin(kind) is dict:
        return "table"
    if get_origin(kind) is tuple:
        return f"list of {_type_name(arguments[0])}"
    if arguments:  # a union
        return " or ".join(map(_type_name, arguments))
    return "none" if kind is type(None) else str(getattr(kind, "__name__", kind))


def doctor_lines(store: str, data_root: str | None) -> Iterator[tuple[bool, str]]:
    """Checks of an installation: whether each is fine, and what was found."""
    import torch

    yield (
        True,
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    )
    for name in ("advbench", "torch", "torchvision", "numpy", "pydantic", "pluggy", "pandas"):
        yield _version(name)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield True, f"GPUs: {', '.join(gpus) if gpus else 'none; tasks run on the CPU'}"
    found = registry()
    counts = ", ".join(f"{sum(1 for _ in found.entries(kind))} {kind}s" for kind in KINDS)
    yield True, f"plugins: {counts}"
    for problem in found.problems:
        yield False, f"plugin {problem.plugin!r} of {problem.distribution} failed to load: {problem.reason}"
    for error in found.duplicates():
        yield False, str(error)
    yield _store_check(store)
    root = Path(data_root) if data_root else DEFAULT_ROOT.expanduser()
    present = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    yield True, f"data in {root}: {', '.join(present) if present else 'nothing yet; digits needs none'}"
    for name in EXTRAS:
        yield True, _extra(name)
    yield _robustbench_check()


def _extra(name: str) -> str:
    try:
        return f"extra {EXTRAS[name]}: {name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"extra {EXTRAS[name]}: not installed; pip install 'advbench[{EXTRAS[name]}]'"


def _version(name: str) -> tuple[bool, str]:
    try:
        return True, f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return False, f"{name} is not installed; pip install {name}"


def _store_check(url: str) -> tuple[bool, str]:
    try:
        Store(url, BRIEF).check_writable()
    except AdvbenchError as error:
        return False, str(error)
    return True, f"store {url} can be written and read"


def _robustbench_check() -> tuple[bool, str]:
    """Torchattacks brings a folder named robustbench of its own; tell whether the one found is RobustBench's."""
    try:
        found = require("robustbench", "the family 'robustbench:'", "bridges")
    except MissingExtraError as error:
        return True, f"bridges: {error}"
    spoilt = written_over(found)
    if spoilt:
        remedy = "pip install --force-reinstall --no-deps robustbench"
        return False, f"robustbench {found.version}: another distribution wrote over {spoilt}; {remedy}"
    return True, f"bridges: robustbench {found.version}"

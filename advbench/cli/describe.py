"""Descriptions for users: a plan and its cost, hyperparameters of a plugin, the state of an installation."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
from tabulate import tabulate

from advbench.data.datasets import data_folder
from advbench.errors import AdvbenchError, InputError, MissingExtraError
from advbench.grid.devices import look
from advbench.grid.estimates import measured
from advbench.grid.plan import Plan
from advbench.grid.queue import longest_chain
from advbench.grid.scheduler import failed_before, outstanding
from advbench.grid.spec import COLOUR_EPS, DEFAULT_ARCHITECTURE, DEFAULT_ARCHITECTURES, EPS
from advbench.models.nets import net_params
from advbench.progress import duration
from advbench.registry import KINDS, files, registry
from advbench.registry.optional import require, written_over
from advbench.registry.params import Configurable, Params
from advbench.report.texts import format_eps
from advbench.store.records import Store
from advbench.store.storage import BRIEF

LIBRARIES = ("advbench", "torch", "torchvision", "numpy", "pydantic", "pluggy", "pandas")
EXTRAS = {"ray": "ray", "s3fs": "s3", "mlflow": "mlflow"}  # libraries and the extras that install them


def plan_lines(plan: Plan, store: Store, *, every_task: bool) -> Iterator[str]:
    """Number and cost of a plan's tasks by kind, in passes and in measured time of similar earlier tasks."""
    waiting = outstanding(plan, store)
    known = measured(store.storage, plan.spec.device)

    def took(seconds: float | None) -> str:
        return "not measured" if seconds is None else duration(seconds)

    rows = []
    for kind in ("train", "craft", "evaluate", "all"):
        planned = [task for task in plan.tasks.values() if kind in ("all", task.kind)]
        to_run = [task for task in planned if task.key in waiting]
        peak = max((like.peak or 0 for task in to_run if (like := known.of(task))), default=0)
        memory = f"{peak / 2**20:,.0f} MiB" if peak else "not measured"
        passes = f"{sum(task.cost for task in to_run):,.0f}"
        rows.append([kind, len(planned), len(to_run), passes, took(known.total(to_run)), memory])
    headers = ["task", "planned", "to run", "image passes", "time on one worker", "memory per task"]
    yield from tabulate(rows, headers=headers, tablefmt="github", colalign=("left", *["right"] * 5)).splitlines()
    others = "; planned tasks that will not run are done or not needed" if len(waiting) < len(plan.tasks) else ""
    yield f"{len(plan.cells):,} {'row' if len(plan.cells) == 1 else 'rows'} in results.csv{others}"
    failed = failed_before(plan, waiting, store)
    if failed:
        yield f"{len(failed)} of the tasks to run failed in a previous run; use --retry-failed to retry them"
    if waiting and known.total(waiting.values()) is not None:
        chain = took(longest_chain(waiting, known.weight))
        yield f"the longest chain of tasks takes {chain}, on any number of workers"
    for task in waiting.values() if every_task else ():
        needs = ", ".join(need[:12] for need in task.needs if need in waiting)
        yield f"{task.key[:12]}  {task.label}  ({took(known.seconds(task))}{needs and f'; after {needs}'})"


def plugin_lines(name: str) -> Iterator[str]:
    """Description of everything registered under a name, with the hyperparameters of a plugin.

    Raises:
        InputError: the name is unknown.
    """
    name = files.kept_name(name)
    kinds = registry().kinds(name)
    for kind in kinds:
        entry, found = registry().find(kind, name), registry().load(kind, name)
        if kind != kinds[0]:
            yield ""
        yield f"{kind} {entry.called}, {entry.distribution} {entry.version}"
        yield ""
        described = None if kind == "paper" else found.__doc__  # a paper is a folder of studies
        yield from inspect.cleandoc(described or entry.summary).splitlines()
        if kind in ("defense", "attack"):
            if paper := vars(found).get("paper"):
                yield from ("", f"{paper} {paper.link}")
            yield from _hyperparameter_lines(found)
        elif kind == "architecture":
            yield from _field_lines(net_params(found), {})
        elif kind == "dataset":
            yield ""
            yield f"default net: {DEFAULT_ARCHITECTURES.get(name, DEFAULT_ARCHITECTURE)}"
            for norm, radii in EPS.get(name, COLOUR_EPS).items():
                yield f"default eps in {norm}: {', '.join(map(format_eps, radii))}"


def _hyperparameter_lines(cls: type[Configurable]) -> Iterator[str]:
    """Traits and hyperparameters of a plugin."""
    for trait in ("norms", "minimal_norm"):
        value = getattr(cls, trait, None)
        if value is not None:
            yield ""
            yield f"{trait}: {', '.join(sorted(value)) if isinstance(value, frozenset) else value}"
    sources = {name: source for source, names in cls.sources.items() for name in names.split()}
    yield from _field_lines(cls.Params, cls.presets, sources)


def _field_lines(
    params: type[Params], presets: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str] = {}
) -> Iterator[str]:
    """Each hyperparameter with default, type, unit, source and presets; `sources` are of the values of `paper`."""
    if not params.model_fields:
        yield ""
        yield "No hyperparameters."
    for field, info in params.model_fields.items():
        yield ""
        default = "required" if info.is_required() else _shown(info.get_default(call_default_factory=True))
        yield f"{field} = {default}  ({_type(info)})"
        yield f"    {info.description or 'not described'}"
        for preset, values in presets.items():
            if field in values:
                source = f" ({sources[field]})" if preset == "paper" and field in sources else ""
                yield f"    preset {preset}: {_shown(values[field])}{source}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _type(info: pydantic.fields.FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(m, word)}" for m in info.metadata for word in ("ge", "gt", "le", "lt") if hasattr(m, word)
    ]
    return ", ".join([_type_name(info.annotation), *bounds])


def _type_name(kind: Any) -> str:
    """Description of a type, without bounds of its elements."""
    arguments = [argument for argument in get_args(kind) if argument is not ...]
    origin = get_origin(kind)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is dict:
        return "table"
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if arguments:  # a union
        return " or ".join(map(_type_name, arguments))
    return "none" if kind is type(None) else str(getattr(kind, "__name__", kind))


def doctor_lines(store: str, data_root: str | None) -> Iterator[tuple[bool, str]]:
    """Check an installation; yield for each check whether it passed, and a line of results."""
    cores = f"{os.cpu_count()} CPU cores"
    yield True, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {cores}"
    for name in LIBRARIES:
        found = _version(name)
        yield bool(found), f"{name} {found}" if found else f"{name} is not installed; pip install {name}"
    try:
        gpus = [device.kind for device in look() if device.is_gpu]
        yield True, f"GPUs: {', '.join(gpus) if gpus else 'none; tasks run on the CPU'}"
    except InputError as error:
        yield False, str(error)
    plugins = registry()
    yield True, f"plugins: {', '.join(f'{len(list(plugins.entries(kind)))} {kind}s' for kind in KINDS)}"
    for problem in (*plugins.problems, *plugins.duplicates()):
        yield False, str(problem)
    try:
        Store(store, BRIEF).check_writable()
        yield True, f"store {store} is readable and writable"
    except AdvbenchError as error:
        yield False, str(error)
    root = data_folder(data_root)
    present = sorted(os.listdir(root)) if os.path.isdir(root) else []
    yield True, f"data in {root}: {', '.join(present) if present else 'none yet; digits is embedded'}"
    for name, extra in EXTRAS.items():
        found = _version(name)
        remedy = f"not installed; pip install 'advbench[{extra}]'"
        yield True, f"extra {extra}: {f'{name} {found}' if found else remedy}"
    yield _robustbench_check()


def _version(name: str) -> str:
    """The version of an installed distribution; empty if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _robustbench_check() -> tuple[bool, str]:
    """Check that robustbench is intact: torchattacks includes a folder of the same name that may overwrite it."""
    try:
        distribution = require("robustbench", "the family 'robustbench:'", "bridges")
    except MissingExtraError as error:
        return True, f"bridges: {error}"
    overwritten = written_over(distribution)
    if overwritten:
        remedy = "pip install --force-reinstall --no-deps robustbench"
        return False, f"robustbench {distribution.version}: another distribution overwrote {overwritten}; {remedy}"
    return True, f"bridges: robustbench {distribution.version}"

"""The command line's options: what they are called and mean, and how they become a spec and an execution."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.errors import InputError

if TYPE_CHECKING:
    from advbench.grid.execution import Execution
    from advbench.grid.spec import RunSpec

Names = list[str]
DEFAULT_STORE = ".advbench/store"
DEFAULT_OUT = Path("results")
DataRoot = Annotated[str | None, typer.Option(help="Folder that holds the data sets.")]
StoreUrl = Annotated[
    str, typer.Option("--store", envvar="ADVBENCH_STORE", help="Where results are kept: a folder or fsspec URL.")
]


def _option(kind: object, flag: str, text: str, **rules: Any) -> Any:
    return Annotated[kind, typer.Option(flag, help=text, **rules)]


# The options that make a spec, by the name of its field.
SPEC_OPTIONS = {
    "file": _option(Path | None, "--spec", "TOML file with the settings; options override it."),
    "defenses": _option(Names | None, "--defense", "Defenses to train: NAME or NAME@LABEL, comma-separated."),
    "attacks": _option(Names | None, "--attack", "Attacks to run, likewise."),
    "dataset": _option(str | None, "--dataset", "Data set. [default: digits]"),
    "architecture": _option(str | None, "--arch", "Net. [default: the data set's]"),
    "norm": _option(str | None, "--norm", "linf or l2. [default: linf]"),
    "eps": _option(Names | None, "--eps", "Radii, as 0.1 or 8/255, comma-separated. [default: the data set's]"),
    "seeds": _option(Names | None, "--seeds", "Seeds; each trains its own models. [default: 0]"),
    "draws": _option(int | None, "--draws", "Draws that judge a random classifier. [default: 20]"),
    "limit": _option(int | None, "--limit", "Judge on a fixed stratified subset of this many test images."),
    "batch_size": _option(int | None, "--batch-size", "Images attacked and judged together. [default: 256]"),
    "precision": _option(str | None, "--precision", "Of training: float32 or bfloat16. [default: float32]"),
    "threads": _option(int | None, "--threads", "CPU threads of a task. [default: 1]"),
    "sweep": _option(bool | None, "--sweep/--no-sweep", "Attack eps by eps: what a smaller one broke is left alone."),
    "budget": _option(int | None, "--budget", "Most forward passes of an image in an attack. [default: the attack's]"),
    "affinity": _option(
        Names | None,
        "--affinity",
        "Attacks whose examples are evaluated on every other defense, too, or none. "
        "[default: pgd, else the first; none with --sweep]",
    ),
    "ood": _option(
        Names | None, "--ood", "Data sets whose images the defenses should be unsure about. [default: none]"
    ),
    "ood_scale": _option(float | None, "--ood-scale", "Factor on the pixel values of those. [default: 1]"),
    "set": _option(Names | None, "--set", "A hyperparameter: NAME.PARAM=VALUE; repeat for more."),
}

# The options that make an execution, by the name of its field, with the field's default.
EXECUTION_OPTIONS: dict[str, tuple[Any, Any]] = {
    "data_root": (DataRoot, None),
    "store": (StoreUrl, DEFAULT_STORE),
    "executor": (
        _option(
            str,
            "--executor",
            "Where tasks run: local, in worker processes; inline, in this one; ray, on Ray.",
            envvar="ADVBENCH_EXECUTOR",
        ),
        "local",
    ),
    "workers": (
        _option(int | None, "--workers", "Workers on each device. [default: as many as there are cores for]", min=1),
        None,
    ),
    "device": (
        _option(str | None, "--device", "As cpu or cuda:0,cuda:1. [default: all GPUs, or the CPU where none is]"),
        None,
    ),
    "chunk": (
        _option(int | None, "--chunk", "Most images in a net at once, in attacks and judging; saves memory.", min=1),
        None,
    ),
    "checkpoint_seconds": (
        _option(float, "--checkpoint-seconds", "Least time between a training's saves.", min=0),
        30.0,
    ),
    "time_limit": (
        _option(float | None, "--time-limit", "Seconds that a task may take. [default: any]", min=0.1),
        None,
    ),
    "retries": (_option(int, "--retries", "How often a task is tried again whose worker died.", min=0), 2),
    "address": (_option(str | None, "--address", "Of a Ray cluster. [default: Ray is started here]"), None),
    "gpus_per_task": (
        _option(
            float | None, "--gpus-per-task", "Part of a GPU that a task asks Ray for. [default: measured]", min=0.01
        ),
        None,
    ),
    "patience": (
        _option(float, "--store-patience", "Seconds for which a store's server that fails is tried again.", min=0),
        120.0,
    ),
}


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `spec` by the options that make one."""
    return _expanded(command, "spec", {name: (kind, None) for name, kind in SPEC_OPTIONS.items()}, make_spec)


def takes_execution(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `execution` by the options that make one."""
    return _expanded(command, "execution", EXECUTION_OPTIONS, _make_execution)


def _expanded(
    command: Callable[..., None], name: str, options: Mapping[str, tuple[Any, Any]], make: Callable[..., Any]
) -> Callable[..., None]:
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != name]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        made = make(**{option: values.pop(option) for option in options})
        command(**{name: made}, **values)

    added = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for option, (annotation, default) in options.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*added, *own)]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _make_execution(**values: Any) -> Execution:
    from advbench.grid.execution import Execution

    return Execution(**values)


def make_spec(file: Path | None, **options: Any) -> RunSpec:
    """The spec that a file and options make; options count.

    Raises:
        InputError: an unknown name, or a bad value.
    """
    from advbench.grid.spec import make_spec as validated
    from advbench.grid.spec import narrowed, parse_settings, parse_toml

    values: dict[str, Any] = {} if file is None else parse_toml(file)
    items = options.pop("set", None)
    whole = dict(values)
    readers = {
        "defenses": names,
        "attacks": names,
        "eps": _radii,
        "seeds": integers,
        "affinity": _attacks_or_none,
        "ood": names,
    }
    for name, value in options.items():
        if value is not None:
            values[name] = readers[name](value) if name in readers else value
    settings = parse_settings(items or [])
    for plugin, params in settings.items():
        given = values.setdefault("set", {})
        if not isinstance(given, dict) or not isinstance(given.get(plugin, {}), dict):
            raise InputError("setting 'set'", expected="a table for each plugin", got=repr(given))
        values["set"] = {**given, plugin: {**given.get(plugin, {}), **params}}
    for name, option in (("defenses", "--defense"), ("attacks", "--attack")):
        if not values.get(name):
            raise InputError(f"no {name}", remedy=f"name at least one with {option}; 'advbench plugins' lists them")
    if all(values[name] == whole.get(name) for name in ("defenses", "attacks")):
        return validated(values)
    # A part of the file's run: what it says of the rest is not needed.
    if isinstance(whole.get("affinity"), list) and options.get("affinity") is None:
        values["affinity"] = [name for name in whole["affinity"] if name in values["attacks"]]
    spec = validated(values)
    plugins = set(whole.get("set", {})) - set(settings)
    return narrowed(spec, validated({**values, **whole}), plugins) if plugins else spec


def names(values: Names) -> list[str]:
    """Names, comma-separated or repeated."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def _attacks_or_none(values: Names) -> list[str]:
    found = names(values)
    return [] if found == ["none"] else found


def _radii(values: Names) -> list[float]:
    try:
        ratios = [name.split("/") if name.count("/") == 1 else [name, "1"] for name in names(values)]
        return [float(above) / float(below) for above, below in ratios]
    except (ValueError, ZeroDivisionError) as error:
        raise InputError("--eps", expected="numbers, as 0.1 or 8/255", got=repr(",".join(values))) from error


def integers(values: Names, option: str = "--seeds") -> list[int]:
    """Whole numbers, comma-separated or repeated.

    Raises:
        InputError: one is none.
    """
    try:
        return [int(name) for name in names(values)]
    except ValueError as error:
        raise InputError(option, expected="whole numbers", got=repr(",".join(values))) from error

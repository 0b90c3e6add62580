"""Options of the command line, and the spec and execution that are built from them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.errors import InputError

if TYPE_CHECKING:
    from advbench.grid.execution import Execution
    from advbench.grid.kept import Kept
    from advbench.grid.spec import RunSpec

Names = list[str]
DEFAULT_STORE = ".advbench/store"
DEFAULT_OUT = Path("results")
DataRoot = Annotated[str | None, typer.Option(help="folder of the data sets [default: ~/.cache/advbench/data]")]
StoreUrl = Annotated[
    str, typer.Option("--store", envvar="ADVBENCH_STORE", help="store of results, a folder or fsspec URL")
]
References = Annotated[
    list[Path] | None,
    typer.Option("--reference", help="RobustBench JSON of a model, or folder of them, to show on the page"),
]
Force = Annotated[bool, typer.Option("--force", help="replace an existing file")]


def _option(name: str, kind: Any, text: str, default: object = None, flag: str = "", **rules: Any) -> Parameter:
    option = typer.Option(flag or f"--{name.replace('_', '-')}", help=text, **rules)
    annotation: Any = Annotated[kind | None if default is None else kind, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# Named like the fields of the spec, but for `file` and `run_files`.
SPEC_OPTIONS = (
    _option("file", Path, "TOML file of settings; options take precedence [default: none]", flag="--spec"),
    _option(
        "run_files",
        bool,
        "import and run the Python files stored next to --spec, as in a board, if the run uses them "
        "[default: refuse them]",
        flag="--run-files",
    ),
    _option(
        "defenses",
        Names,
        "defenses to train, as NAME, NAME@LABEL or path/to/my.py:CLASS, comma-separated",
        flag="--defense",
    ),
    _option(
        "attacks", Names, "attacks to run, as NAME, NAME@LABEL or path/to/my.py:CLASS, comma-separated", flag="--attack"
    ),
    _option("dataset", str, "data set [default: digits]"),
    _option(
        "architecture", str, "network architecture, or path/to/my.py:FUNCTION [default: the data set's]", flag="--arch"
    ),
    _option("norm", str, "norm of the perturbations, linf or l2 [default: linf]"),
    _option(
        "eps", Names, "radii for pixels in [0, 1], such as 0.1 or 8/255, comma-separated [default: the data set's]"
    ),
    _option("seeds", Names, "seeds, comma-separated; each trains its own models [default: 0]"),
    _option("draws", int, "draws of a random classifier per evaluation [default: 20]"),
    _option("limit", int, "size of a fixed stratified subset of the test images to evaluate on [default: all images]"),
    _option("batch_size", int, "images per batch in attacks and evaluations [default: 256]"),
    _option("precision", str, "data type of training, float32 or bfloat16 [default: float32]"),
    _option("threads", int, "CPU threads per task [default: 1]"),
    _option(
        "sweep",
        bool,
        "run attacks in order of radius, skipping images that a smaller one broke [default: no-sweep]",
        flag="--sweep/--no-sweep",
    ),
    _option("budget", int, "limit on an attack's forward passes per image [default: the attack's own]"),
    _option(
        "converge",
        bool,
        "double each attack's steps, samples and restarts until accuracy stops decreasing [default: no-converge]",
        flag="--converge/--no-converge",
    ),
    _option("converge_limit", int, "maximum factor on each of them, with --converge [default: 16]", min=2),
    _option(
        "affinity",
        Names,
        "attacks whose examples are also evaluated on every other defense, or none "
        "[default: pgd, else the first; none with --sweep]",
    ),
    _option("ood", Names, "out-of-distribution data sets, comma-separated [default: none]"),
    _option("ood_scale", float, "factor on the pixel values of out-of-distribution images [default: 1]"),
    _option(
        "ood_signed",
        bool,
        "apply it to pixel values in [-1, 1] in place of [0, 1], as APD does [default: no-ood-signed]",
        flag="--ood-signed/--no-ood-signed",
    ),
    _option(
        "history",
        str,
        "interval of measurements during training: epoch, or a number of steps [default: none]",
    ),
    _option("set", Names, "hyperparameter NAME.PARAM=VALUE, or arch.PARAM=VALUE for the net; may be repeated"),
)

# Named like the fields of `Execution`, with its defaults.
EXECUTION_OPTIONS = (
    Parameter("data_root", Parameter.KEYWORD_ONLY, default=None, annotation=DataRoot),
    Parameter("store", Parameter.KEYWORD_ONLY, default=DEFAULT_STORE, annotation=StoreUrl),
    _option(
        "executor",
        str,
        "executor of tasks: local (worker processes), inline (this process) or ray (Ray, here or on a cluster)",
        "local",
        envvar="ADVBENCH_EXECUTOR",
    ),
    _option("workers", int, "workers per device [default: as many as the cores allow]", min=1),
    _option("device", str, "devices, such as cpu or cuda:0,cuda:1 [default: all GPUs, or the CPU if there is none]"),
    _option("chunk", int, "limit on images per forward pass, to save memory [default: the whole batch]", min=1),
    _option("checkpoint_seconds", float, "minimum time between checkpoints of a training, in seconds", 30.0, min=0),
    _option("time_limit", float, "time limit per task, in seconds [default: none]", min=0.1),
    _option("retries", int, "retries of a task whose worker died", 2, min=0),
    _option("address", str, "address of a Ray cluster [default: a new one on this machine]"),
    _option("gpus_per_task", float, "fraction of a GPU that Ray reserves per task [default: as measured]", min=0.01),
    _option("patience", float, "time limit for retrying a failing store, in seconds", 120.0, "--store-patience", min=0),
)


def expanded(
    name: str, options: tuple[Parameter, ...], make: Callable[..., Any], command: Callable[..., None]
) -> Callable[..., None]:
    """A command with a parameter replaced by options, from which its value is built."""
    signature = inspect.signature(command)

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        made = make(**{option.name: values.pop(option.name) for option in options})
        command(**{name: made}, **values)

    own = (each.replace(kind=Parameter.KEYWORD_ONLY) for each in signature.parameters.values() if each.name != name)
    parameters = (*options, *own)
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper


def _make_execution(**values: Any) -> Execution:
    from advbench.grid.execution import Execution

    return Execution(**values)


def make_spec(file: Path | None, **options: Any) -> RunSpec:
    """Build the spec from a file and options; options take precedence.

    Raises:
        InputError: a name is unknown, or a value invalid.
    """
    from advbench.grid.inputs import Converge
    from advbench.grid.spec import label_files, narrowed, parse_settings, parse_toml
    from advbench.grid.spec import make_spec as validated

    values: dict[str, Any] = {} if file is None else label_files(parse_toml(file), file.parent)
    kept = _stored_files(values, file, run=options.pop("run_files", None))
    items = options.pop("set", None)
    limit, converge = options.pop("converge_limit", None), options.pop("converge", None)
    if limit is not None and not (converge or (converge is None and values.get("converge"))):
        raise InputError("--converge-limit", expected="--converge as well", got=limit)
    options["converge"] = limit or (values.get("converge", Converge().limit) if converge else None)
    if converge is False:
        values.pop("converge", None)
    whole = dict(values)
    readers: dict[str, Callable[[Names], list[Any]]] = {"eps": _radii, "seeds": _seeds}
    for name, value in options.items():
        if value is not None:
            values[name] = readers.get(name, names)(value) if isinstance(value, list) else value
    if values.get("affinity") == ["none"] and options.get("affinity"):
        values["affinity"] = []
    settings = parse_settings(items or [])
    if file is not None:  # so that options and the file use the same labels
        given = [settings, *(values[name] for name, value in options.items() if value is not None)]
        values = label_files(_without_replaced_files(values, given))
    for plugin, params in settings.items():
        given = values.setdefault("set", {})
        if not isinstance(given, dict) or not isinstance(given.get(plugin, {}), dict):
            raise InputError("setting 'set'", expected="a table for each plugin", got=repr(given))
        values["set"] = {**given, plugin: {**given.get(plugin, {}), **params}}
    for name, option in (("defenses", "--defense"), ("attacks", "--attack")):
        if not values.get(name):
            raise InputError(f"no {name}", remedy=f"give at least one with {option}; 'advbench plugins' lists them")
    if all(values[name] == whole.get(name) for name in ("defenses", "attacks")):
        return validated(values)
    # For a part of the file's run, settings of other plugins are dropped.
    if isinstance(whole.get("affinity"), list) and options.get("affinity") is None:
        values["affinity"] = [name for name in whole["affinity"] if name in values["attacks"]]
    spec = validated(values)
    plugins = set(whole.get("set", {})) - set(settings)
    return narrowed(spec, validated({**values, **whole}), plugins, kept, importing=True) if plugins else spec


def _make_converging_spec(file: Path | None, **options: Any) -> RunSpec:
    return make_spec(file, **{**options, "converge": True})


def _stored_files(values: dict[str, Any], file: Path | None, *, run: bool | None) -> Kept | None:
    """Description of the files stored next to the spec of a board, if it names any; with `run`, they may be imported.

    Raises:
        InputError: a stored file is damaged, or there is no spec.
    """
    from advbench.grid.kept import placed, read_kept
    from advbench.registry import files

    if run and file is None:
        raise InputError("--run-files", expected="--spec as well, whose files to run")
    if file is None or not any(map(files.digest_of, files.strings(values))):
        return None
    kept, sources = read_kept(file.parent)
    for each in placed(sources, file.parent):
        (files.know if run else files.offer)(each)
    return kept


def _without_replaced_files(values: dict[str, Any], given: list[Any]) -> dict[str, Any]:
    """The values of a spec without the files of labels that it no longer uses, for given options."""
    from advbench.registry import files

    for name in files.strings(given):
        files.kept_name(name)  # whoever gives a path allows its file to be run, also under another name
    table = values.get("files")
    if not isinstance(table, dict):
        return values
    used = {*files.strings({name: each for name, each in values.items() if name != "files"}), *files.strings(given)}
    return {**values, "files": {label: name for label, name in table.items() if label in used}}


def names(values: Names) -> list[str]:
    """Values of a comma-separated or repeated option."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def _radii(values: Names) -> list[float]:
    try:
        ratios = [name.split("/") if name.count("/") == 1 else [name, "1"] for name in names(values)]
        return [float(above) / float(below) for above, below in ratios]
    except (ValueError, ZeroDivisionError) as error:
        raise InputError("--eps", expected="numbers, such as 0.1 or 8/255", got=repr(",".join(values))) from error


def _seeds(values: Names) -> list[int]:
    try:
        return [int(name) for name in names(values)]
    except ValueError as error:
        raise InputError("--seeds", expected="whole numbers", got=repr(",".join(values))) from error


# Decorators of commands with a parameter `spec` or `execution`.
takes_spec = functools.partial(expanded, "spec", SPEC_OPTIONS, make_spec)
takes_converging_spec = functools.partial(expanded, "spec", SPEC_OPTIONS, _make_converging_spec)
takes_execution = functools.partial(expanded, "execution", EXECUTION_OPTIONS, _make_execution)

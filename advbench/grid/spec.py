"""A run, as the user asks for it: options or TOML become frozen, validated values."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
import tomli_w
from pydantic.fields import FieldInfo

from advbench.attacks.base import Attack, Norm, Threat
from advbench.attacks.budget import least_cost, within_budget
from advbench.errors import AdvbenchError, InputError, unknown_name
from advbench.grid.convergence import axes
from advbench.grid.inputs import Component, Converge
from advbench.grid.kept import INDEX, Kept, names_in
from advbench.models.nets import net_values
from advbench.registry import Entry, Kind, files, registry
from advbench.registry import pinned as by_content
from advbench.registry.params import Configurable, Paper
from advbench.training.base import Defense, Precision
from advbench.training.gradient import GradientDefense
from advbench.training.wrapper import Wrapper

CORE = "advbench"
BOARD = "records.jsonl.gz"  # the file that makes a folder a board
NET = "arch"  # stands for the net in --set
NAMED: tuple[Kind, ...] = ("defense", "attack", "architecture")  # kinds of what a file may hold
WEIGHTS = (".pt", ".pth", ".safetensors")  # suffixes of files of which several can be meant
LARGEST = 10**40  # integer of a spec, which fits a float
DEEPEST = 32  # levels of nesting of a spec
Count = Annotated[int, pydantic.Field(strict=True, ge=1, le=2**63 - 1)]
Seed = Annotated[int, pydantic.Field(strict=True, ge=0, le=LARGEST)]

# Radii of the curve and of the headline (the last) for each data set, in pixels in [0, 1].
EPS: dict[str, dict[Norm, tuple[float, ...]]] = {
    "digits": {"linf": (0.05, 0.1, 0.15), "l2": (0.25, 0.5, 1.0)},
    "mnist": {"linf": (0.1, 0.2, 0.3), "l2": (1.0, 2.0, 3.0)},
    "fashion_mnist": {"linf": (0.05, 0.1, 0.15), "l2": (0.5, 1.0, 1.5)},
}
COLOUR_EPS: dict[Norm, tuple[float, ...]] = {
    "linf": (2 / 255, 4 / 255, 8 / 255),
    "l2": (0.25, 0.5, 1.0),
}
DEFAULT_ARCHITECTURES = {
    "mnist": "bal_cnn",
    "fashion_mnist": "bal_cnn",
    "cifar10": "vgg16",
    "cifar100": "vgg16",
    "stl10": "model_a",
    "svhn": "resnet20",
    "gtsrb": "stn",
}
DEFAULT_ARCHITECTURE = "small_cnn"  # of all others


Name = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class RunSpec(pydantic.BaseModel):
    """What a run computes. Two equal specs on the same data and versions give the same results.

    A defense or attack is the name of a plugin, or `name@label` to have one plugin several times with different
    hyperparameters. `affinity` names the attacks whose examples are crafted to the end and evaluated on every other
    defense, too; by default `pgd` where the run has it, else the first. `ood` names data sets whose images every
    defense is shown as well, to see whether its uncertainty finds them out; their pixel values are multiplied by
    `ood_scale`, those in [-1, 1] where `ood_signed`. `converge` has attacks run to convergence (`grid.convergence`),
    and is the largest factor by which one of their hyperparameters is multiplied on the way. `device` is the kind of
    device, `cpu` or the model of a GPU: not of the same kind, not the same draws. `files` holds what labels of
    defenses, attacks and nets stand for that are in files, as `path/to/my.py:NAME`, or in a board, which keeps them,
    `file:DIGEST:NAME`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = "digits"
    architecture: str = ""
    defenses: tuple[str, ...] = pydantic.Field(min_length=1)
    attacks: tuple[str, ...] = pydantic.Field(min_length=1)
    norm: Norm = "linf"
    eps: tuple[pydantic.StrictFloat, ...] = ()
    seeds: tuple[Seed, ...] = pydantic.Field(default=(0,), min_length=1)
    draws: Count = 20
    limit: Count | None = None
    batch_size: Count = 256
    precision: Precision = "float32"
    threads: Count = pydantic.Field(default=1, le=1024)
    sweep: pydantic.StrictBool = False
    budget: Count | None = None
    converge: Count | None = pydantic.Field(default=None, ge=2)
    affinity: tuple[str, ...] | None = None
    device: Name | None = None
    ood: tuple[str, ...] = ()
    ood_scale: pydantic.StrictFloat = pydantic.Field(default=1.0, gt=0)
    ood_signed: pydantic.StrictBool = False
    set: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}

    @pydantic.field_validator("defenses", "attacks")
    @classmethod
    def _labels(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        odd = [value for value in values if not re.fullmatch(r"\w[\w.+-]*(:[\w./+-]+)?(@[\w.+-]+)?", value, re.ASCII)]
        if odd:
            raise ValueError(
                "names as NAME, LIBRARY:NAME or NAME@LABEL of letters, digits and _ . / + -, or path/to/my.py:NAME"
            )
        return values

    @pydantic.field_validator("files")
    @classmethod
    def _in_files(cls, values: dict[str, str]) -> dict[str, str]:
        for label, name in values.items():
            found = files.PATH.fullmatch(name)
            if not re.fullmatch(r"\w[\w.+-]*", label, re.ASCII) or not (files.KEPT.fullmatch(name) or found):
                raise ValueError("labels, each with a path/to/my.py:NAME")
            if found and found["label"]:
                raise ValueError("path/to/my.py:NAME without @label, which stands before it")
        return values

    @pydantic.field_validator("defenses", "attacks", "eps", "seeds", "affinity", "ood")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        repeated = sorted(str(value) for value, count in Counter(values or ()).items() if count > 1)
        if repeated:
            raise ValueError(f"each value once; repeated: {', '.join(repeated)}")
        return values

    def named(self, label: str) -> str:
        """What the registry calls the plugin or net of a label."""
        return self.files.get(label) or label.partition("@")[0]

    def completed(self) -> RunSpec:
        """The spec with the data set's defaults filled in; what only repeats the clean row is left out."""
        kind = self.dataset.partition(":")[0]
        attacks = tuple(name for name in self.attacks if name.partition("@")[0] != "none")
        eps = self.eps or EPS.get(kind, COLOUR_EPS)[self.norm]
        for value in eps:
            Threat(self.norm, value)
        for name in self.affinity or ():
            if name not in self.attacks:
                raise unknown_name("attack for the affinity matrix", name, attacks or ("none",))
        for option, given in (("--budget", self.budget is not None), ("--sweep", self.sweep)):
            if self.converge and given:
                expected = "not both: each setting of an attack is run by itself, with all its passes"
                raise InputError(f"--converge with {option}", expected=expected)
        affinity = self.affinity
        if affinity is None:
            by_pgd = tuple(name for name in attacks if name.partition("@")[0] == "pgd")
            # A sweep would have to craft them at each radius anew.
            # Files are not imported here: whoever made a board may have made this spec.
            others = (each for each in attacks if each in self.files or _transfers(self.named(each)))
            affinity = () if self.sweep else (by_pgd or tuple(others))[:1]
        architecture = self.architecture or DEFAULT_ARCHITECTURES.get(kind, DEFAULT_ARCHITECTURE)
        # Hyperparameters name plugins, too, as `init_from` does.
        mentioned = {*self.defenses, *self.attacks, architecture, *files.strings(self.set)}
        return self.model_copy(
            update={
                "eps": tuple(sorted(e for e in eps if e > 0)) or (0.0,),
                "attacks": attacks or ("none",),
                "architecture": architecture,
                "affinity": affinity,
                "files": {label: name for label, name in self.files.items() if label in mentioned},
            }
        )

    def to_toml(self) -> str:
        """The spec as TOML, from which `parse_toml` makes an equal one."""
        # An empty table would stand there as a heading.
        empty = {name for name in ("set", "files", "ood_signed") if not getattr(self, name)}
        return tomli_w.dumps(self.model_dump(exclude=empty, exclude_none=True))


def _transfers(attack: str) -> bool:
    """Whether examples of an attack mean something to other defenses; of what is not known, yes."""
    try:
        cls: type[Attack] = registry().load("attack", attack)
    except AdvbenchError:  # which is raised again where the attack is needed
        return True
    return cls.aim in ("error", "certain_error") and cls.knows != "the_draw"


OTHER_AIMS = frozenset({"certain_error", "doubt", "certainty", "the_draw"})  # traits with which accuracy is not the end
TRAITS = ("minimal_norm", "black_box", "mixed", "stops_early", "grows")


class Choice(NamedTuple):
    """A plugin as a run uses it."""

    label: str  # what tables call it
    component: Component  # what keys hold of it
    passes: float | None  # forward and backward, that it makes for each image; None where it does not say
    init: Choice | None = None  # the defense whose weights one starts from, or that an attack has as its source
    traits: frozenset[str] = frozenset()  # of an attack, those of `TRAITS` that hold, an aim, what it knows
    net: Component | None = None  # a defense's
    architecture: str = ""  # what tables call it
    paper: Paper | None = None  # where it is from

    @property
    def params(self) -> Mapping[str, Any]:
        """Its resolved hyperparameters, JSON values."""
        return self.component.params or {}

    @property
    def built_on(self) -> Mapping[str, str]:
        """Versions of the libraries that it wraps, by distribution."""
        return self.component.built_on or {}

    @property
    def parts(self) -> Mapping[str, str]:
        """Versions of the plugins that it is made of, by name."""
        return self.component.parts or {}


def make_spec(values: Mapping[str, Any]) -> RunSpec:
    """Validate option values or parsed TOML, in which files may stand as names.

    Raises:
        InputError: an unknown name, or a value of the wrong type or range.
    """
    for name in values:
        if name not in RunSpec.model_fields:
            raise unknown_name("setting", name, RunSpec.model_fields)
    values = label_files(values)
    try:
        spec = RunSpec.model_validate(dict(values)).completed()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise InputError(
            f"setting {where!r}", expected=message[0].lower() + message[1:], got=repr(first["input"])
        ) from error
    for name, value in spec.model_dump(exclude_none=True).items():  # what spec.toml could not hold after the run
        try:
            tomli_w.dumps({name: value}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            expected = "values that a TOML file in UTF-8 can hold"
            raise InputError(f"setting {name!r}", expected=expected, got=repr(value)) from error
    return spec


def label_files(values: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """The values of a spec in which labels stand for what is in files, and `files` says for what.

    Args:
        values: of a spec; a defense, attack or net in a file may stand there as `path/to/my.py:NAME` or with `@LABEL`.
        folder: where files are looked for that are not where their path says, as that of the spec.

    Raises:
        InputError: the spec of a board names files by path; two of one label, or a label that is registered; or a
            name that looks like a file but is none.
    """
    if folder is not None and (folder / BOARD).exists() and names_in(values):
        remedy = f"name files of your own, or of the board if you trust it: --defense {folder}/files/.../my.py:NAME"
        raise InputError(f"spec in {folder}, a board", expected="no paths of files", got="some", remedy=remedy)
    table = values.get("files", {})
    if not isinstance(table, Mapping):
        return dict(values)  # and have it refused
    found: dict[str, Any] = {label: _placed(name, folder) for label, name in table.items()}
    aliases: dict[str, str] = {}

    def labelled(name: Any, kind: Kind) -> Any:
        if not isinstance(name, str) or name in found or registry().knows(kind, name.partition("@")[0]):
            return name
        parts = files.PATH.fullmatch(name)
        if parts is None:
            files.check_path(name, kind)
            return name
        label, target = parts["label"] or parts["name"], _placed(f"{parts['path']}:{parts['name']}", folder)
        taken = found.setdefault(label, target)
        if taken != target or label == NET or any(registry().knows(each, label) for each in NAMED):
            got = f"{taken} and {target}" if taken != target else f"{target}, and a name of advbench"
            raise InputError(f"label {label!r}", expected="one thing", got=got, remedy=f"write {target}@LABEL")
        aliases.update({name: label, f"{parts['name']}@{label}": label})
        return label

    values = dict(values)
    kinds: dict[str, Kind] = {"defenses": "defense", "attacks": "attack", "affinity": "attack"}
    for field, kind in kinds.items():
        if isinstance(values.get(field), list | tuple):
            values[field] = [labelled(name, kind) for name in values[field]]
    if values.get("architecture"):
        values["architecture"] = labelled(values["architecture"], "architecture")
    if isinstance(values.get("set"), Mapping):
        values["set"] = {aliases.get(label, label): params for label, params in values["set"].items()}
    return {**values, "files": found} if found else values


def _placed(name: Any, folder: Path | None) -> Any:
    """A name whose file is looked for in a folder, too."""
    parts = files.PATH.fullmatch(name) if isinstance(name, str) else None
    if parts is None or folder is None or Path(parts["path"]).expanduser().exists():
        return name
    beside = folder / parts["path"]
    return f"{beside}:{parts['name']}" if beside.exists() else name


def parse_toml(path: Path) -> dict[str, Any]:
    """The values of a spec file.

    Raises:
        InputError: the file cannot be read, or is no TOML.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"spec file {path}", expected="readable TOML", got=error.strerror) from error
    return read_toml(raw, f"spec file {path}")


def read_toml(raw: bytes, what: str) -> dict[str, Any]:
    """The values of a spec file's content.

    Args:
        raw: the content.
        what: the file, for the error.

    Raises:
        InputError: it is no TOML.
    """
    try:
        return _loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(what, expected="readable TOML", got=str(error)) from error


def _loads(text: str) -> dict[str, Any]:
    """The values of TOML within the bounds that its standard and reason set.

    Raises:
        ValueError: it is no TOML, or out of these bounds.
    """
    too_deep = f"more than {DEEPEST} levels of nesting"
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    pending: list[tuple[int, Any]] = [(0, values)]
    while pending:
        depth, value = pending.pop()
        if depth > DEEPEST:
            raise ValueError(too_deep)
        if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            raise ValueError("an integer beyond 1e40")
        if isinstance(value, dict | list):
            pending += [(depth + 1, each) for each in (value.values() if isinstance(value, dict) else value)]
    return values


def parse_settings(items: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`name.param=value` items as nested values; a value is TOML where it parses as such, else a string.

    Raises:
        InputError: an item is not of that form.
    """
    settings: dict[str, dict[str, Any]] = {}
    for item in items:
        target, equals, raw = item.partition("=")
        plugin, dot, param = target.strip().rpartition(".")
        if not (equals and dot and plugin and param):
            raise InputError("--set", expected="name.param=value", got=repr(item))
        try:
            parsed = _loads(f"v = {raw}")
        except tomllib.TOMLDecodeError:
            parsed = {}
        except ValueError as error:
            raise InputError(f"--set {plugin}.{param}", expected="a value of bounded size", got=str(error)) from error
        value = parsed["v"] if len(parsed) == 1 else raw.strip()
        if not isinstance(value, str | int | float | list | dict):
            raise InputError(f"--set {plugin}.{param}", expected="a string, number, boolean or list", got=raw)
        before = settings.get(plugin, {}).get(param, value)
        if before != value and all(str(each).endswith(WEIGHTS) for each in (before, value)):  # else the later one wins
            got, remedy = f"{before!r} and {value!r}", f"write a list: --set {plugin}.{param}={before},{value}"
            raise InputError(f"--set {plugin}.{param}", expected="one value", got=got, remedy=remedy)
        settings.setdefault(plugin, {})[param] = value
    return settings


def resolve(spec: RunSpec, kept: Kept | None = None) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    """The run's defenses and attacks with their resolved hyperparameters; loads their classes.

    Args:
        spec: the run.
        kept: what is kept of its files, which are not imported then; None to import them.

    Raises:
        InputError: an unknown plugin or hyperparameter, a bad value, a norm that an attack lacks, or a
            setting for a plugin that the run does not use.
    """
    registry().find("dataset", spec.dataset.partition(":")[0])
    defenses, attacks = _choices(spec, kept)
    used = _used(spec, kept)
    for plugin in spec.set:
        if plugin not in used:
            raise unknown_name("plugin in --set", plugin, sorted(used))
    for choice in defenses if kept is None else ():
        _check_wrapped(choice)
    for choice in attacks:
        if kept is not None and choice.label in kept.choices:
            continue
        with _running(choice.component.loaded_as):
            attack: Attack = registry().load("attack", choice.component.loaded_as)(**choice.params)
        attack.check(Threat(spec.norm, 0.0))
        if "certainty" in choice.traits and not spec.ood:
            remedy = "name data sets with --ood"
            raise InputError(
                f"attack {choice.label!r}", expected="out-of-distribution images", got="none", remedy=remedy
            )
        if choice.label in (spec.affinity or ()) and not choice.traits.isdisjoint({"doubt", "certainty", "the_draw"}):
            expected = "attacks whose examples mean something to other defenses"
            raise InputError("--affinity", expected=expected, got=repr(choice.label))
        if spec.budget is not None:
            _check_budget(attack, spec.budget, sweep=spec.sweep and not transferred(spec, choice))
    return defenses, attacks


def _check_wrapped(choice: Choice) -> None:
    """Refuse to wrap a defense with noise of its own before it is trained."""
    if choice.init is None or not issubclass(registry().load("defense", choice.component.loaded_as), Wrapper):
        return
    with _running(choice.init.component.loaded_as):
        inner = registry().load("defense", choice.init.component.loaded_as)(**choice.init.params)
        noise = inner.noise() if isinstance(inner, GradientDefense | Wrapper) else None
    if noise is not None and noise.acts:
        got = f"{choice.init.label}, which contains noise"
        raise InputError(f"init_from of {choice.label!r}", expected="a defense without noise of its own", got=got)


def pinned(spec: RunSpec, kept: Kept | None = None) -> RunSpec:
    """The spec in which each file that a hyperparameter names has its digest.

    Args:
        spec: the run.
        kept: as in `resolve`.

    Raises:
        InputError: there is no such file.
    """
    return _with_files(spec, by_content.pinned, importing=kept is None)


def published(spec: RunSpec, what: str) -> RunSpec:
    """The spec as a board has it, which knows files that hyperparameters name by their digest alone, and reads none.

    Args:
        spec: the spec of a run or of a board.
        what: the spec, for the error.

    Raises:
        InputError: a file's digest is not stated.
    """
    settings = {label: by_content.bare(params) for label, params in spec.set.items()}
    bare = spec.model_copy(update={"set": settings}) if settings != spec.set else spec
    try:
        return _with_files(bare, by_content.without_path, importing=False)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _with_files(spec: RunSpec, rename: Callable[[str], str], *, importing: bool) -> RunSpec:
    """The spec with other names for the files that its hyperparameters name; plugins in files only if they may run."""
    kinds: tuple[Kind, ...] = ("defense", "attack")
    settings = dict(spec.set)
    for label, params in spec.set.items():
        name = spec.named(label)
        kind = next(
            (each for each in kinds if label in getattr(spec, f"{each}s") or registry().knows(each, name)), None
        )
        fields: Mapping[str, FieldInfo] = {}
        if kind is not None and (importing or label not in spec.files):
            with suppress(AdvbenchError):  # of which `resolve` tells
                fields = registry().load(kind, name).Params.model_fields
        settings[label] = {
            param: _renamed(value, rename) if param in fields and by_content.names_files(fields[param]) else value
            for param, value in params.items()
        }
    return spec.model_copy(update={"set": settings}) if settings != spec.set else spec


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """Files of a hyperparameter under other names."""
    several = by_content.listed(value)
    return files.renamed(several if several != [value] else value, rename)


def transferred(spec: RunSpec, attack: Choice) -> bool:
    """Whether an attack's examples are evaluated on other defenses than the one that they were crafted on.

    These are crafted to the end: what stops once the source is broken says too little of others. So are all those of
    the attacks that `affinity` names, also where there is one defense.
    """
    return attack.init is not None or attack.label in (spec.affinity or ())


def swept(spec: RunSpec, attack: Choice) -> bool:
    """Whether an attack goes radius by radius, and leaves alone what a smaller one broke."""
    ends = attack.traits.isdisjoint(OTHER_AIMS | {"minimal_norm"})
    return spec.sweep and ends and not transferred(spec, attack)


def stops_early(spec: RunSpec, attack: Choice) -> bool:
    """Whether an attack leaves images alone that certainly fool the defense: where it can, if none are transferred."""
    return "stops_early" in attack.traits and attack.traits.isdisjoint(OTHER_AIMS) and not transferred(spec, attack)


def made_to_converge(spec: RunSpec) -> RunSpec:
    """The spec, its attacks run to convergence.

    Raises:
        InputError: none of them can be made stronger, or a setting that does not go with it.
    """
    spec = spec if spec.converge else spec.model_copy(update={"converge": Converge().limit}).completed()
    attacks = _choices(spec, None)[1]
    if not any(converges(spec, attack) for attack in attacks):
        expected = "one with a number of steps, samples or restarts"
        raise InputError("attacks of a curve", expected=expected, got=", ".join(spec.attacks))
    return spec


def converges(spec: RunSpec, attack: Choice) -> bool:
    """Whether an attack is run to convergence: where it has something that can be doubled."""
    return spec.converge is not None and "grows" in attack.traits and attack.traits.isdisjoint(OTHER_AIMS)


def one_for_all(spec: RunSpec, attack: Choice) -> bool:
    """Whether one run of an attack serves all eps: it is of minimal norm, and need not converge at each."""
    return "minimal_norm" in attack.traits and not converges(spec, attack)


def narrowed(spec: RunSpec, whole: RunSpec, names: Iterable[str], kept: Kept | None = None) -> RunSpec:
    """The spec without settings for plugins that it leaves out of a whole run.

    Args:
        spec: a part of the whole, which has the settings of all of it.
        whole: a run.
        names: of the plugins whose settings are not needed if the part does not use them.
        kept: as in `resolve`.

    Raises:
        InputError: an unknown plugin or hyperparameter, or a bad value.
    """
    used = _used(spec, kept)
    left_out = _used(whole, kept).intersection(names) - used
    settings = {name: v for name, v in spec.set.items() if name not in left_out}
    in_files = {name: v for name, v in spec.files.items() if name in {*used, spec.architecture}}
    return spec.model_copy(update={"set": settings, "files": in_files})


def _choices(spec: RunSpec, kept: Kept | None) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    defenses = tuple(_choose("defense", label, spec, kept) for label in spec.defenses)
    return defenses, tuple(_choose("attack", label, spec, kept) for label in spec.attacks if label != "none")


def _used(spec: RunSpec, kept: Kept | None) -> set[str]:
    """Labels of the plugins that a run uses, those included whose weights others start from; and that of its net."""
    labels = {*spec.defenses, *spec.attacks, NET}
    for choice in itertools.chain(*_choices(spec, kept)):
        start = choice.init
        while start:
            labels.add(start.label)
            start = start.init
    return labels


def _check_budget(attack: Attack, budget: int, *, sweep: bool) -> None:
    """A random classifier may need more, but whether one will be attacked is not known yet."""
    judging = int(sweep and not attack.minimal_norm)
    least = least_cost(attack, random=False)
    if least is not None and least + judging > budget:
        expected = f"at least {least + judging} passes of an image" + (", one of them for the sweep" if judging else "")
        raise InputError(f"--budget for attack {type(attack).__name__}", expected=expected, got=budget)
    within_budget(attack, budget, random=False)


def _choose(kind: Kind, label: str, spec: RunSpec, kept: Kept | None, heirs: tuple[str, ...] = ()) -> Choice:
    """The plugin under that label; `heirs` are the defenses that start from its weights."""
    if kept is not None and label in kept.choices and (label in spec.files or _names_kept(spec.set.get(label))):
        return _as_kept(kind, label, spec, kept, heirs)
    settings = spec.set.get(label, {})
    name = spec.named(label)
    if kept is not None and (names_in(settings) or label in spec.files):
        raise _not_kept(kind, label)
    name = files.kept_name(name)
    if kept is None:
        settings = files.renamed(settings, files.kept_name)
    cls: type[Configurable] = registry().load(kind, name)
    for_net = kind == "defense" and NET not in cls.Params.model_fields
    chosen = settings.get(NET) if for_net else None  # the net of this defense alone
    settings = {param: value for param, value in settings.items() if not (for_net and param == NET)}
    with _running(name):
        try:
            values = cls.resolve(settings, spec.dataset.partition(":")[0]).model_dump(mode="json")
        except InputError as error:
            raise InputError(f"{kind} {label!r}: {error}") from error
        plugin, component = cls(**values), installed(kind, name, values)
        start: str | None
        passes: float | None
        if isinstance(plugin, Attack):
            start, passes, net = plugin.source, plugin.cost(True), None
        else:
            assert isinstance(plugin, Defense), "a plugin with hyperparameters is an attack or a defense"
            start, passes, net = values.get("init_from"), plugin.passes_per_image(), plugin.architecture
    init, paper = _init(kind, label, start, spec, kept, heirs), vars(cls).get("paper")
    if not isinstance(paper, Paper | None):
        expected = "advbench.training.Paper(title=..., authors=..., year=..., link=...)"
        raise InputError(f"paper of {kind} {label!r}", expected=expected, got=repr(paper))
    if isinstance(plugin, Attack):
        if passes is not None and not plugin.gradients:
            passes = passes / 3  # a forward pass is a third of both
        mixed = plugin.gradients and len({part.gradients for part in plugin.parts.values()}) == 2
        holding = (plugin.minimal_norm, not plugin.gradients, mixed, plugin.stops_early, bool(axes(plugin)))
        traits = dict(zip(TRAITS, holding, strict=True))
        traits |= {plugin.aim: plugin.aim != "error", plugin.knows: plugin.knows != "posterior"}
        held = frozenset(trait for trait, holds in traits.items() if holds)
        return Choice(label, component, passes, init, held, paper=paper)
    if net is not None:
        if chosen is not None:
            raise InputError(f"net of defense {label!r}", expected=f"its own, {net}", got=repr(chosen))
        own = installed("architecture", _own_net(net, name))
        shown = _shown_net(component.name, own)
    else:
        own, shown = _net_of(label, chosen, init, spec, kept)
    return Choice(label, component, passes, init, net=own, architecture=shown, paper=paper)


def _net_of(label: str, name: Any, init: Choice | None, spec: RunSpec, kept: Kept | None) -> tuple[Component, str]:
    """The net of a defense that brings none, and what tables call it: the named one, that of its start, the run's."""
    if name is None and init is not None and init.net is not None:
        return init.net, init.architecture
    if name in (None, spec.architecture):
        return _net(spec, kept), spec.architecture
    if not isinstance(name, str):
        expected = "a registered net or path/to/my.py:FUNCTION"
        raise InputError(f"hyperparameter {NET!r} of defense {label!r}", expected=expected, got=repr(name))
    if kept is not None and files.KEPT.fullmatch(name):
        raise _not_kept("defense", label)
    own = installed("architecture", name)
    return own, spec.architecture if own == _net(spec, kept) else _shown_net(label, own)


def _init(
    kind: str, label: str, start: str | None, spec: RunSpec, kept: Kept | None, heirs: tuple[str, ...]
) -> Choice | None:
    """The defense that the plugin under a label starts from, or that is an attack's source."""
    if not start:
        return None
    if start in (*heirs, label):
        raise InputError(f"init_from of {label!r}", expected="a defense that does not start from it", got=repr(start))
    try:
        return _choose("defense", start, spec, kept, (*heirs, label))
    except InputError as error:
        raise InputError(f"{kind} {label!r} starts from {start!r}: {error}") from error


def _as_kept(kind: Kind, label: str, spec: RunSpec, kept: Kept, heirs: tuple[str, ...]) -> Choice:
    """A plugin of a file, as a run used it."""
    found = kept.choices[label]
    by_path = files.is_path(spec.named(label)) and found.component.file  # in a run's spec
    if found.kind != kind or not (by_path or found.component.loaded_as == spec.named(label)):
        raise _not_kept(kind, label)
    init = _init(kind, label, found.init, spec, kept, heirs)
    if kind == "attack":
        return Choice(label, found.component, found.passes, init, frozenset(found.traits), paper=found.paper)
    net, shown = found.net or _net(spec, kept), spec.architecture
    if found.net:
        by = label if NET in spec.set.get(label, {}) else found.component.name
        shown = init.architecture if init is not None and init.net == found.net else _shown_net(by, found.net)
    return Choice(label, found.component, found.passes, init, net=net, architecture=shown, paper=found.paper)


def _names_kept(settings: Any) -> bool:
    """Whether hyperparameters name something in a file."""
    return any(files.is_path(each) or files.KEPT.fullmatch(each) for each in files.strings(settings))


def _not_kept(kind: str, label: str) -> InputError:
    return InputError(
        f"{kind} {label!r}", expected=f"what {INDEX} says of it, for its file is not imported", got="nothing that fits"
    )


def _shown_net(owner: str, net: Component) -> str:
    """What tables call a net that is one plugin's or label's alone."""
    return f"{owner}.{net.name}" if net.file else net.name


def _own_net(name: str, plugin: str) -> str:
    """The name of the net that a plugin brings with it: one in its own file goes before a registered one."""
    digest = files.digest_of(plugin)
    return f"{files.FILE}:{digest}:{name}" if digest and not registry().knows("architecture", name) else name


def _net(spec: RunSpec, kept: Kept | None) -> Component:
    """The run's net."""
    name = spec.named(spec.architecture) if spec.architecture in spec.files else spec.architecture
    if kept is not None and spec.architecture in spec.files:
        here = files.KEPT.fullmatch(name)
        if kept.net is None or (here and (here["digest"], here["name"]) != (kept.net.file, kept.net.name)):
            raise _not_kept("architecture", spec.architecture)
        return kept.net
    return installed("architecture", name, spec.set.get(NET, {}))


def _running(name: str) -> AbstractContextManager[None]:
    """A block in which code of a file runs, if the name is of one."""
    digest = files.digest_of(name)
    return files.running(digest, "is set up") if digest else nullcontext()


def installed(kind: Kind, name: str, params: Mapping[str, Any] | None = None) -> Component:
    """A plugin or net with the versions that are installed in this process.

    Args:
        kind: of the name.
        name: as it is registered, or `path/to/my.py:NAME`. What makes a net may name, as `built_on`, libraries whose
            code it is.
        params: a plugin's resolved hyperparameters, or a net's that were given.
    """
    name = files.kept_name(name)
    entry, made = registry().find(kind, name), registry().load(kind, name)
    plugin = made
    if kind == "architecture":
        params = net_values(made, params or {})
    elif params is not None:
        plugin = made(**params)
    libraries, parts = _wrapped(plugin, entry.distribution)
    version, digest = plugin_version(made, entry), files.digest_of(name)
    shown = name.rpartition(":")[2] if digest else name
    return Component(shown, entry.distribution, version, params, libraries or None, parts or None, digest)


def _wrapped(plugin: Any, distribution: str) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the libraries, and of the other plugins, that a plugin of that distribution is made of."""
    libraries = {name: importlib.metadata.version(name) for name in getattr(plugin, "built_on", ())}
    parts: dict[str, str] = {}
    for label, part in plugin.parts.items() if isinstance(plugin, Attack | Defense) else ():
        name = files.kept_name(label.partition("@")[0])
        entry = registry().find("attack" if isinstance(part, Attack) else "defense", name)
        theirs, inner = _wrapped(part, entry.distribution)
        libraries |= theirs
        if entry.distribution not in (distribution, files.FILE):
            libraries[entry.distribution] = entry.version
        parts |= {name: plugin_version(type(part), entry), **inner}
    return libraries, parts


def plugin_version(plugin: Any, entry: Entry) -> str:
    """The version that a plugin's results depend on: its own `version`; else that of its distribution.

    One that a class inherits is not its own, as what it adds may change without it; but it counts beside its own where
    another distribution's class states it. What is installed editable has a digest of its sources besides. Nets of
    the core have none and go by the schema of trainings, whatever the release.

    Args:
        plugin: a class, or a function that makes nets.
        entry: under which it is registered.
    """
    own: str = vars(plugin).get("version", "")
    if entry.distribution == CORE:
        return own or "1"
    digest = entry.version.partition("+")[2]
    parts = [f"{own}+{digest}" if own and digest else own or entry.version]
    if isinstance(plugin, type):
        package = plugin.__module__.partition(".")[0]
        bases = [base for base in plugin.__mro__[1:] if base.__module__.partition(".")[0] != package]
        parts += [f"{base.__name__} {vars(base)['version']}" for base in bases if vars(base).get("version")]
    return ", ".join(parts)

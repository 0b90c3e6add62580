"""A run, as the user asks for it: options or TOML become frozen, validated values."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
import tomli_w

from advbench.attacks.base import Attack, Norm, Threat
from advbench.attacks.budget import least_cost, within_budget
from advbench.errors import InputError, unknown_name
from advbench.grid.inputs import Component
from advbench.registry import Entry, Kind, registry
from advbench.registry import pinned as files
from advbench.registry.params import Configurable
from advbench.training.base import Defense, Precision

CORE = "advbench"
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

    A defense or attack is the name of a plugin, or `name@label` to have one plugin several times with
    different hyperparameters. `affinity` names the attacks whose examples are crafted to the end and evaluated on
    every other defense, too; by default `pgd` where the run has it, else the first. `ood` names data sets whose images
    every defense is shown as well, to see whether its uncertainty finds them out; their pixel values are multiplied by
    `ood_scale`. `device` is the kind of device, `cpu` or the model of a GPU: not of the same kind, not the same draws.
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
    affinity: tuple[str, ...] | None = None
    device: Name | None = None
    ood: tuple[str, ...] = ()
    ood_scale: pydantic.StrictFloat = pydantic.Field(default=1.0, gt=0)
    set: dict[str, dict[str, Any]] = {}

    @pydantic.field_validator("defenses", "attacks")
    @classmethod
    def _labels(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        odd = [value for value in values if not re.fullmatch(r"\w+(:[\w./+-]+)?(@[\w.+-]+)?", value, re.ASCII)]
        if odd:
            raise ValueError("names as NAME, LIBRARY:NAME or NAME@LABEL of letters, digits and _ . / + -")
        return values

    @pydantic.field_validator("defenses", "attacks", "eps", "seeds", "affinity", "ood")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        repeated = sorted(str(value) for value, count in Counter(values or ()).items() if count > 1)
        if repeated:
            raise ValueError(f"each value once; repeated: {', '.join(repeated)}")
        return values

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
        affinity = self.affinity
        if affinity is None:
            by_pgd = tuple(name for name in attacks if name.partition("@")[0] == "pgd")
            # A sweep would have to craft them at each radius anew.
            affinity = () if self.sweep else (by_pgd or attacks)[:1]
        architecture = self.architecture or DEFAULT_ARCHITECTURES.get(kind, DEFAULT_ARCHITECTURE)
        return self.model_copy(
            update={
                "eps": tuple(sorted(e for e in eps if e > 0)) or (0.0,),
                "attacks": attacks or ("none",),
                "architecture": architecture,
                "affinity": affinity,
            }
        )

    def to_toml(self) -> str:
        """The spec as TOML, from which `parse_toml` makes an equal one."""
        # An empty table would stand there as a heading.
        return tomli_w.dumps(self.model_dump(exclude=set() if self.set else {"set"}, exclude_none=True))


class Choice(NamedTuple):
    """A plugin as a run uses it."""

    label: str  # what tables call it
    component: Component  # what keys hold of it
    passes: float | None  # forward and backward, that it makes for each image; None where it does not say
    init: Choice | None = None  # the defense whose weights one starts from, or that an attack has as its source
    traits: frozenset[str] = frozenset()  # of an attack, those of `minimal_norm` and `black_box` that hold
    net: Component | None = None  # a defense's

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

    @property
    def architecture(self) -> str:
        """Name of a defense's net; empty of an attack."""
        return self.net.name if self.net else ""


def make_spec(values: Mapping[str, Any]) -> RunSpec:
    """Validate option values or parsed TOML.

    Raises:
        InputError: an unknown name, or a value of the wrong type or range.
    """
    for name in values:
        if name not in RunSpec.model_fields:
            raise unknown_name("setting", name, RunSpec.model_fields)
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
        settings.setdefault(plugin, {})[param] = value
    return settings


def resolve(spec: RunSpec) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    """The run's defenses and attacks with their resolved hyperparameters; loads their classes.

    Raises:
        InputError: an unknown plugin or hyperparameter, a bad value, a norm that an attack lacks, or a
            setting for a plugin that the run does not use.
    """
    registry().find("dataset", spec.dataset.partition(":")[0])
    defenses, attacks = _choices(spec)
    used = _used(spec)
    for plugin in spec.set:
        if plugin not in used:
            raise unknown_name("plugin in --set", plugin, sorted(used))
    for choice in attacks:
        attack: Attack = registry().load("attack", choice.component.name)(**choice.params)
        attack.check(Threat(spec.norm, 0.0))
        goes_on = transferred(spec, choice)
        if attack.stops_early and goes_on:
            remedy = "--affinity none transfers no examples, --affinity ATTACK those of another attack"
            raise InputError(
                f"attack {choice.label!r}, whose examples are transferred",
                expected="one that does not stop early",
                got="early_stop",
                remedy=remedy if choice.init is None else "leave early_stop to attacks that stay with their source",
            )
        if spec.budget is not None:
            _check_budget(attack, spec.budget, sweep=spec.sweep and not goes_on)
    return defenses, attacks


def pinned(spec: RunSpec) -> RunSpec:
    """The spec in which each file that a hyperparameter names has its digest.

    Raises:
        InputError: there is no such file.
    """
    return _with_files(spec, files.pinned)


def published(spec: RunSpec, what: str) -> RunSpec:
    """The spec as a board has it, which knows files that hyperparameters name by their digest alone, and reads none.

    Args:
        spec: the spec of a run or of a board.
        what: the spec, for the error.

    Raises:
        InputError: a file's digest is not stated.
    """
    try:
        return _with_files(spec, files.without_path)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _with_files(spec: RunSpec, rename: Callable[[str], str]) -> RunSpec:
    """The spec with other names for the files that its hyperparameters name."""
    settings = dict(spec.set)
    for label, params in spec.set.items():
        name = label.partition("@")[0]
        kind: Kind | None = next((kind for kind in ("defense", "attack") if registry().knows(kind, name)), None)
        fields = registry().load(kind, name).Params.model_fields if kind else {}
        settings[label] = {
            param: files.renamed(value, rename) if param in fields and files.names_files(fields[param]) else value
            for param, value in params.items()
        }
    return spec.model_copy(update={"set": settings}) if settings != spec.set else spec


def transferred(spec: RunSpec, attack: Choice) -> bool:
    """Whether an attack's examples are evaluated on other defenses than the one that they were crafted on.

    These are crafted to the end: what stops once the source is broken says too little of others.
    """
    return attack.init is not None or attack.label in (spec.affinity or ())


def swept(spec: RunSpec, attack: Choice) -> bool:
    """Whether an attack goes radius by radius, and leaves alone what a smaller one broke."""
    return spec.sweep and "minimal_norm" not in attack.traits and not transferred(spec, attack)


def narrowed(spec: RunSpec, whole: RunSpec, names: Iterable[str]) -> RunSpec:
    """The spec without settings for plugins that it leaves out of a whole run.

    Args:
        spec: a part of the whole, which has the settings of all of it.
        whole: a run.
        names: of the plugins whose settings are not needed if the part does not use them.

    Raises:
        InputError: an unknown plugin or hyperparameter, or a bad value.
    """
    left_out = _used(whole).intersection(names) - _used(spec)
    return spec.model_copy(update={"set": {name: v for name, v in spec.set.items() if name not in left_out}})


def _choices(spec: RunSpec) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    defenses = tuple(_choose("defense", label, spec) for label in spec.defenses)
    return defenses, tuple(_choose("attack", label, spec) for label in spec.attacks if label != "none")


def _used(spec: RunSpec) -> set[str]:
    """Labels of the plugins that a run uses, those included whose weights others start from."""
    labels = {*spec.defenses, *spec.attacks}
    for choice in itertools.chain(*_choices(spec)):
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


def _choose(kind: Kind, label: str, spec: RunSpec, heirs: tuple[str, ...] = ()) -> Choice:
    """The plugin under that label; `heirs` are the defenses that start from its weights."""
    name = label.partition("@")[0]
    cls: type[Configurable] = registry().load(kind, name)
    try:
        values = cls.resolve(spec.set.get(label, {}), spec.dataset.partition(":")[0]).model_dump(mode="json")
    except InputError as error:
        raise InputError(f"{kind} {label!r}: {error}") from error
    plugin = cls(**values)
    init = plugin.source if isinstance(plugin, Attack) else values.get("init_from")
    if init in (*heirs, label):
        raise InputError(f"init_from of {label!r}", expected="a defense that does not start from it", got=repr(init))
    try:
        start = _choose("defense", init, spec, (*heirs, label)) if init else None
    except InputError as error:
        raise InputError(f"{kind} {label!r} starts from {init!r}: {error}") from error
    component = installed(kind, name, values)
    if isinstance(plugin, Attack):
        cost = plugin.cost(True)
        passes = cost if cost is None or plugin.gradients else cost / 3  # a forward pass is a third of both
        traits = {"minimal_norm": plugin.minimal_norm, "black_box": not plugin.gradients}
        return Choice(label, component, passes, start, frozenset(trait for trait, holds in traits.items() if holds))
    assert isinstance(plugin, Defense), "a plugin with hyperparameters is an attack or a defense"
    net = installed("architecture", plugin.architecture or spec.architecture)
    return Choice(label, component, plugin.passes_per_image(), start, net=net)


def installed(kind: Kind, name: str, params: Mapping[str, Any] | None = None) -> Component:
    """A plugin or net with the versions that are installed in this process.

    Args:
        kind: of the name.
        name: as it is registered. What makes a net may name, as `built_on`, libraries whose code it is.
        params: a plugin's resolved hyperparameters.
    """
    entry, made = registry().find(kind, name), registry().load(kind, name)
    plugin = made if params is None else made(**params)
    libraries, parts = _wrapped(plugin, entry.distribution)
    version = plugin_version(made, entry)
    return Component(name, entry.distribution, version, params, libraries or None, parts or None)


def _wrapped(plugin: Any, distribution: str) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the libraries, and of the other plugins, that a plugin of that distribution is made of."""
    libraries = {name: importlib.metadata.version(name) for name in getattr(plugin, "built_on", ())}
    parts: dict[str, str] = {}
    for label, part in plugin.parts.items() if isinstance(plugin, Attack | Defense) else ():
        name = label.partition("@")[0]
        entry = registry().find("attack" if isinstance(part, Attack) else "defense", name)
        theirs, inner = _wrapped(part, entry.distribution)
        libraries |= theirs
        if entry.distribution != distribution:
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

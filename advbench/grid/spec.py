"""Spec of a run: frozen, validated values from options or TOML."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import tomli_w
from pydantic.fields import FieldInfo

from advbench.attacks.base import Attack, Norm, Threat
from advbench.attacks.budget import least_cost, within_budget
from advbench.errors import AdvbenchError, InputError, expected_in, unknown_name
from advbench.grid.convergence import axes
from advbench.grid.inputs import Component, Converge
from advbench.grid.kept import CORE, INDEX, Kept, KeptChoice, is_third_party, names_in
from advbench.models.nets import net_params, net_values
from advbench.models.noise import Noise
from advbench.registry import Entry, Kind, files, registry
from advbench.registry import pinned as by_content
from advbench.registry.params import Configurable, Paper
from advbench.training.base import Defense, Precision
from advbench.training.gradient import GradientDefense
from advbench.training.history import check_watched
from advbench.training.wrapper import Wrapper

BOARD = "records.jsonl.gz"  # marks the folder of a board
NET = "arch"  # name of the net in --set
NAMED: tuple[Kind, ...] = ("defense", "attack", "architecture")  # kinds of plugins in files
WEIGHTS = (".pt", ".pth", ".safetensors")  # suffixes of files of which several can be meant
LARGEST = 10**40  # largest integer in a spec; fits a float
Count = Annotated[int, pydantic.Field(strict=True, ge=1, le=2**63 - 1)]
Seed = Annotated[int, pydantic.Field(strict=True, ge=0, le=LARGEST)]

# Default radii for each data set, for pixels in [0, 1]; the last one is that of the main table.
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
    "toy2d": "fcnn",
}
DEFAULT_ARCHITECTURE = "small_cnn"  # for all other data sets


Name = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class RunSpec(pydantic.BaseModel):
    """Specification of a run. Equal specs with the same data and versions give equal results.

    Defenses and attacks are names of plugins, or `name@label` for several settings of one plugin. `affinity` lists the
    attacks whose examples are crafted without early stopping and also evaluated on every other defense; by default
    `pgd`, or the first attack. `ood` lists out-of-distribution data sets for detection by uncertainty; their pixel
    values (in [-1, 1] if `ood_signed`) are multiplied by `ood_scale`. `converge` runs attacks to convergence
    (`grid.convergence`); its value is the maximum factor on each of their hyperparameters. `history` measures trainings
    after each epoch or a number of steps: errors on the test images, and detection of the images of `ood` by
    uncertainty. `device` is the kind of device, `cpu` or the model of a GPU, which determines random draws. `files`
    maps labels of defenses, attacks and nets in files to `path/to/my.py:NAME`, or in a board, which stores the files,
    to `file:DIGEST:NAME`.
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
    history: Literal["epoch"] | Count | None = None
    set: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}

    @pydantic.field_validator("defenses", "attacks")
    @classmethod
    def _labels(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        odd = [value for value in values if not re.fullmatch(r"\w[\w.+-]*(:[\w./+-]+)?(@[\w.+-]+)?", value, re.ASCII)]
        if odd:
            raise ValueError(
                "names of the form NAME, LIBRARY:NAME or NAME@LABEL of letters, digits and _ . / + -, or "
                "path/to/my.py:NAME"
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
                raise ValueError("path/to/my.py:NAME without @label")
        return values

    @pydantic.field_validator("history", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @pydantic.field_validator("defenses", "attacks", "eps", "seeds", "affinity", "ood")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        repeated = sorted(str(value) for value, count in Counter(values or ()).items() if count > 1)
        if repeated:
            raise ValueError(f"each value once; repeated: {', '.join(repeated)}")
        return values

    @property
    def data_name(self) -> str:
        """Name of the data set in tables: of the user's own data, the name of their folder or file."""
        kind, _, path = self.dataset.partition(":")
        return PurePath(path).name.removesuffix(".npz") or kind

    def named(self, label: str) -> str:
        """Name of the plugin or net of a label in the registry."""
        return self.files.get(label) or label.partition("@")[0]

    def completed(self) -> RunSpec:
        """The spec completed with the data set's defaults; attacks that only repeat the clean row are removed."""
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
                expected = (
                    "one of them: with --converge, each setting of an attack is run separately with all its passes"
                )
                raise InputError(f"--converge with {option}", expected=expected)
        affinity = self.affinity
        if affinity is None:
            by_pgd = tuple(name for name in attacks if name.partition("@")[0] == "pgd")
            # A sweep would have to craft them again at each radius.
            # Files are not imported here: the spec may be that of an untrusted board.
            others = (each for each in attacks if each in self.files or _transfers(self.named(each)))
            affinity = () if self.sweep else (by_pgd or tuple(others))[:1]
        architecture = self.architecture or DEFAULT_ARCHITECTURES.get(kind, DEFAULT_ARCHITECTURE)
        # Hyperparameters may name plugins, too, such as `init_from`.
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
        """Serialise as TOML, the inverse of `parse_toml`."""
        # An empty table would appear as a heading.
        empty = {name for name in ("set", "files", "ood_signed") if not getattr(self, name)}
        return tomli_w.dumps(self.model_dump(exclude=empty, exclude_none=True))


def _transfers(attack: str) -> bool:
    """True if examples of an attack are meaningful for other defenses, or the attack is unknown."""
    try:
        cls: type[Attack] = registry().load("attack", attack)
    except AdvbenchError:  # raised again when the attack is needed
        return True
    return cls.aim in ("error", "certain_error") and cls.knows != "the_draw"


OTHER_AIMS = frozenset(
    {"certain_error", "doubt", "certainty", "the_draw"}
)  # traits of attacks that aim at more than accuracy
TRAITS = ("minimal_norm", "black_box", "mixed", "stops_early", "grows")


class Choice(NamedTuple):
    """A plugin with its settings in a run."""

    label: str  # name in tables
    component: Component  # its part of keys
    passes: float | None  # forward and backward passes per image; None if unknown
    init: Choice | None = None  # defense that provides the initial weights, or the source of an attack
    traits: frozenset[str] = frozenset()  # of an attack: true `TRAITS`, its aim, its knowledge
    net: Component | None = None  # net of a defense
    architecture: str = ""  # name in tables
    paper: Paper | None = None  # reference

    @property
    def lineage(self) -> list[Choice]:
        """Itself, what it starts from, what that starts from, and so on."""
        return [self, *(self.init.lineage if self.init else [])]

    @property
    def params(self) -> Mapping[str, Any]:
        """Resolved hyperparameters as JSON values."""
        return self.component.params or {}

    @property
    def built_on(self) -> Mapping[str, str]:
        """Versions of wrapped libraries, by distribution."""
        return self.component.built_on or {}

    @property
    def parts(self) -> Mapping[str, str]:
        """Versions of component plugins, by name."""
        return self.component.parts or {}


def make_spec(values: Mapping[str, Any]) -> RunSpec:
    """Validate option values or parsed TOML, in which names may refer to files.

    Raises:
        InputError: a name is unknown, or the type or range of a value is wrong.
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
        raise InputError(f"setting {where!r}", expected=expected_in(first["msg"]), got=repr(first["input"])) from error
    for name, value in spec.model_dump(exclude_none=True).items():  # must be representable in spec.toml
        try:
            tomli_w.dumps({name: value}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            expected = "values that a TOML file in UTF-8 can represent"
            raise InputError(f"setting {name!r}", expected=expected, got=repr(value)) from error
    return spec


def label_files(values: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Replace files in the values of a spec by labels, and add `files`, which maps labels to files.

    Args:
        values: values of a spec; plugins in files have the form `path/to/my.py:NAME`, possibly with `@LABEL`.
        folder: folder in which files are searched as well, such as that of the spec.

    Raises:
        InputError: the spec of a board has paths of files; a label is used twice or is a registered name; or a name
            looks like a file but is not.
    """
    if folder is not None and (folder / BOARD).exists() and names_in(values):
        remedy = f"use your own files, or those of the board if you trust it: --defense {folder}/files/.../my.py:NAME"
        raise InputError(f"spec in {folder}, a board", expected="no paths of files", got="some", remedy=remedy)
    table = values.get("files", {})
    if not isinstance(table, Mapping):
        return dict(values)  # refused later
    found: dict[str, Any] = {label: _placed(name, folder) for label, name in table.items()}
    aliases: dict[str, str] = {}  # other ways to write a label in `set` and `affinity`
    names = [name for field in ("defenses", "attacks") for name in _strings(values.get(field))]
    short = Counter(name.partition("@")[2] for name in names)
    for name in names:
        label = name.partition("@")[2]
        known = label in names or any(registry().knows(kind, label) for kind in NAMED)
        if label and short[label] == 1 and label != NET and not known and not files.PATH.fullmatch(name):
            aliases[label] = name

    def labelled(name: Any, kind: Kind) -> Any:
        if not isinstance(name, str) or name in found or registry().knows(kind, name.partition("@")[0]):
            return name
        parts = files.PATH.fullmatch(name)
        if parts is None:
            files.check_path(name, kind)
            return name
        label, target = parts["label"] or parts["name"], _placed(f"{parts['path']}:{parts['name']}", folder)
        taken = found.setdefault(label, target)
        if taken != target and files.KEPT.fullmatch(taken) and files.kept_name(target) == taken:
            taken = found[label] = target  # a file of a board, by its path
        if taken != target or label == NET or any(registry().knows(each, label) for each in NAMED):
            got = f"{taken} and {target}" if taken != target else f"{target}, and a name of advbench"
            raise InputError(f"label {label!r}", expected="one meaning", got=got, remedy=f"use {target}@LABEL")
        aliases.update({name: label, f"{parts['name']}@{label}": label})
        return label

    values = dict(values)
    kinds: dict[str, Kind] = {"defenses": "defense", "attacks": "attack", "affinity": "attack"}
    for field, kind in kinds.items():
        if isinstance(values.get(field), list | tuple):
            values[field] = [labelled(name, kind) for name in values[field]]
    if values.get("architecture"):
        values["architecture"] = labelled(values["architecture"], "architecture")
    if isinstance(values.get("affinity"), list | tuple):
        values["affinity"] = [aliases.get(name, name) if isinstance(name, str) else name for name in values["affinity"]]
    if isinstance(values.get("set"), Mapping):
        values["set"] = _merged(values["set"], aliases)
    return {**values, "files": found} if found else values


def _strings(values: Any) -> list[str]:
    return [each for each in values if isinstance(each, str)] if isinstance(values, list | tuple) else []


def _merged(settings: Mapping[Any, Any], aliases: Mapping[str, str]) -> dict[Any, Any]:
    """Settings by label, in which a label may be written in several ways."""
    merged: dict[Any, Any] = {}
    for name, params in settings.items():
        label = aliases.get(name, name)
        both = isinstance(params, Mapping) and isinstance(merged.get(label), Mapping)
        merged[label] = {**merged[label], **params} if both else params
    return merged


def _placed(name: Any, folder: Path | None) -> Any:
    """A name whose file is also searched in a folder."""
    parts = files.PATH.fullmatch(name) if isinstance(name, str) else None
    if parts is None or folder is None or Path(parts["path"]).expanduser().exists():
        return name
    beside = folder / parts["path"]
    return f"{beside}:{parts['name']}" if beside.exists() else name


def parse_toml(path: Path) -> dict[str, Any]:
    """Read the values of a spec file.

    Raises:
        InputError: the file cannot be read, or is not TOML.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"spec file {path}", expected="readable TOML", got=error.strerror) from error
    return read_toml(raw, f"spec file {path}")


def read_toml(raw: bytes, what: str) -> dict[str, Any]:
    """Parse the content of a spec file.

    Args:
        raw: the content.
        what: description of the file, for errors.

    Raises:
        InputError: it is not TOML.
    """
    try:
        return _loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(what, expected="readable TOML", got=str(error)) from error


def _loads(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("more levels of nesting than can be read") from error


def parse_settings(items: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Parse `name.param=value` items into nested values; a value is TOML if it parses as such, otherwise a string.

    Raises:
        InputError: an item has another form.
    """
    settings: dict[str, dict[str, Any]] = {}
    for item in items:
        target, equals, raw = item.partition("=")
        plugin, dot, param = target.strip().rpartition(".")
        if plugin.endswith(f".{NET}"):  # a setting of the net of one defense
            plugin, param = plugin.removesuffix(f".{NET}"), f"{NET}.{param}"
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
    """Resolve the hyperparameters of a run's defenses and attacks; loads their classes.

    Args:
        spec: the run.
        kept: stored description of plugins in files and of other distributions, which are then not imported; None to
            import them.

    Raises:
        InputError: a plugin or hyperparameter is unknown, a value invalid, a norm not supported, or a setting belongs
            to a plugin that the run does not use.
    """
    if kept is None:
        registry().find("dataset", spec.dataset.partition(":")[0])
    defenses, attacks = _choices(spec, kept)
    used = _used(spec, kept)
    for plugin in spec.set:
        if plugin not in used:
            raise unknown_name("label in --set", plugin, sorted(used))
    for choice in defenses if kept is None else ():
        _check_wrapped(choice)
        if spec.history:
            check_watched(registry().load("defense", choice.component.loaded_as), choice.label)
    for choice in attacks:
        if kept is not None and choice.label in kept.choices:
            continue
        with files.running(choice.component.loaded_as, "is set up"):
            attack: Attack = registry().load("attack", choice.component.loaded_as)(**choice.params)
        attack.check(Threat(spec.norm, 0.0))
        if "certainty" in choice.traits and not spec.ood:
            remedy = "choose data sets with --ood"
            raise InputError(
                f"attack {choice.label!r}", expected="out-of-distribution images", got="none", remedy=remedy
            )
        if choice.label in (spec.affinity or ()) and not choice.traits.isdisjoint({"doubt", "certainty", "the_draw"}):
            expected = "attacks whose examples are meaningful for other defenses"
            raise InputError("--affinity", expected=expected, got=repr(choice.label))
        if spec.budget is not None:
            _check_budget(attack, spec.budget, sweep=spec.sweep and not transferred(spec, choice))
    return defenses, attacks


def _check_wrapped(choice: Choice) -> None:
    """Refuse to wrap a defense with noise of its own before it is trained."""
    if choice.init is None or not issubclass(registry().load("defense", choice.component.loaded_as), Wrapper):
        return
    with files.running(choice.init.component.loaded_as, "is set up"):
        inner = registry().load("defense", choice.init.component.loaded_as)(**choice.init.params)
        noise = inner.noise() if isinstance(inner, GradientDefense | Wrapper) else None
    if isinstance(noise, Noise) and noise.acts:  # another object is refused by the task
        got = f"{choice.init.label}, which contains noise"
        raise InputError(f"init_from of {choice.label!r}", expected="a defense without noise of its own", got=got)


def pinned(spec: RunSpec, kept: Kept | None = None) -> RunSpec:
    """The spec with the digest of each file in hyperparameters.

    Args:
        spec: the run.
        kept: as in `resolve`.

    Raises:
        InputError: a file does not exist.
    """
    return _with_files(spec, by_content.pinned, importing=kept is None)


def published(spec: RunSpec, what: str) -> RunSpec:
    """The spec of a board, in which files in hyperparameters are given by digest only; no file is read.

    Args:
        spec: the spec of a run or of a board.
        what: the spec, for the error.

    Raises:
        InputError: the digest of a file is missing.
    """
    settings = {label: by_content.bare(params) for label, params in spec.set.items()}
    bare = spec.model_copy(update={"set": settings}) if settings != spec.set else spec
    try:
        return _with_files(bare, by_content.without_path, importing=False)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _with_files(spec: RunSpec, rename: Callable[[str], str], *, importing: bool) -> RunSpec:
    """The spec with files in hyperparameters renamed; plugins in files are included if they may run."""
    kinds: tuple[Kind, ...] = ("defense", "attack")
    settings = dict(spec.set)
    for label, params in spec.set.items():
        name = spec.named(label)
        kind = next(
            (each for each in kinds if label in getattr(spec, f"{each}s") or registry().knows(each, name)), None
        )
        fields: Mapping[str, FieldInfo] = {}
        if kind is not None and (importing or label not in spec.files):
            with suppress(AdvbenchError):  # reported by `resolve`
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
    """True if examples of an attack are evaluated on defenses other than their source.

    These are crafted without early stopping, which would weaken transfer. The same holds for all attacks in `affinity`,
    even with a single defense.
    """
    return attack.init is not None or attack.label in (spec.affinity or ())


def swept(spec: RunSpec, attack: Choice) -> bool:
    """True if an attack runs in order of radius and skips images that a smaller radius broke."""
    ends = attack.traits.isdisjoint(OTHER_AIMS | {"minimal_norm"})
    return spec.sweep and ends and not transferred(spec, attack)


def stops_early(spec: RunSpec, attack: Choice) -> bool:
    """True if an attack stops early for images that certainly fool the defense; never if examples are transferred."""
    return "stops_early" in attack.traits and attack.traits.isdisjoint(OTHER_AIMS) and not transferred(spec, attack)


def made_to_converge(spec: RunSpec) -> RunSpec:
    """The spec with its attacks run to convergence.

    Raises:
        InputError: the effort of none can be increased, or a setting conflicts.
    """
    spec = spec if spec.converge else spec.model_copy(update={"converge": Converge().limit}).completed()
    attacks = _choices(spec, None)[1]
    if not any(converges(spec, attack) for attack in attacks):
        expected = "an attack with a number of steps, samples or restarts"
        raise InputError("attacks of a curve", expected=expected, got=", ".join(spec.attacks))
    return spec


def converges(spec: RunSpec, attack: Choice) -> bool:
    """True if an attack is run to convergence, which needs a hyperparameter to double."""
    return spec.converge is not None and "grows" in attack.traits and attack.traits.isdisjoint(OTHER_AIMS)


def one_for_all(spec: RunSpec, attack: Choice) -> bool:
    """True if one run of an attack serves all eps: a minimal-norm attack that is not run to convergence."""
    return "minimal_norm" in attack.traits and not converges(spec, attack)


def narrowed(
    spec: RunSpec, whole: RunSpec, names: Iterable[str], kept: Kept | None = None, *, importing: bool = False
) -> RunSpec:
    """The part of a run, without settings for plugins that it does not use.

    Args:
        spec: a part of the run, with the settings of the whole run.
        whole: the whole run.
        names: names of plugins whose settings are dropped if unused.
        kept: as in `resolve`.
        importing: import the files of the part, and no others.

    Raises:
        InputError: a plugin or hyperparameter is unknown, or a value invalid.
    """
    used = _used(spec, None if importing else kept)
    left_out = _used(whole, kept).intersection(names) - used
    settings = {name: v for name, v in spec.set.items() if name not in left_out}
    in_files = {name: v for name, v in spec.files.items() if name in {*used, spec.architecture}}
    return spec.model_copy(update={"set": settings, "files": in_files})


def without_unused(spec: RunSpec, kept: Kept) -> RunSpec:
    """The spec of a board without settings and files of plugins that it does not use."""
    used = {*_used(spec, kept), spec.architecture}
    settings = {name: params for name, params in spec.set.items() if name in used}
    in_files = {name: file for name, file in spec.files.items() if name in used}
    return spec.model_copy(update={"set": settings, "files": in_files})


def _choices(spec: RunSpec, kept: Kept | None) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    defenses = tuple(_choose("defense", label, spec, kept) for label in spec.defenses)
    return defenses, tuple(_choose("attack", label, spec, kept) for label in spec.attacks if label != "none")


def _used(spec: RunSpec, kept: Kept | None) -> set[str]:
    """Labels of the plugins that a run uses, including those of initial weights, and of its net."""
    chosen = itertools.chain(*_choices(spec, kept))
    return {*spec.defenses, *spec.attacks, NET} | {each.label for choice in chosen for each in choice.lineage}


def _check_budget(attack: Attack, budget: int, *, sweep: bool) -> None:
    """Check the budget of an attack for deterministic classifiers; random ones, not yet known, may need more."""
    checking = int(sweep and not attack.minimal_norm)
    least = least_cost(attack, random=False)
    if least is not None and least + checking > budget:
        expected = f"at least {least + checking} passes per image" + (
            ", including one for the sweep" if checking else ""
        )
        raise InputError(f"--budget for attack {type(attack).__name__}", expected=expected, got=budget)
    within_budget(attack, budget, random=False)


def _choose(kind: Kind, label: str, spec: RunSpec, kept: Kept | None, heirs: tuple[str, ...] = ()) -> Choice:
    """Resolve the plugin of a label; `heirs` are the defenses that start from its weights."""
    settings = spec.set.get(label, {})
    in_file = (
        label in spec.files or _names_kept(settings) or (_chooses_net(settings) and spec.architecture in spec.files)
    )
    name = spec.named(label)
    if kept is not None and label in kept.choices and (in_file or _from_outside(kept.choices[label], name, settings)):
        return _as_kept(kind, label, spec, kept, heirs)
    if kept is not None and (names_in(settings) or label in spec.files):
        raise _not_kept(kind, label)
    name = files.kept_name(name)
    if kept is None:
        settings = files.renamed(settings, files.kept_name)
    cls: type[Configurable] = registry().load(kind, name)
    for_net = kind == "defense" and NET not in cls.Params.model_fields
    own_settings = {key: value for key, value in settings.items() if for_net and key.partition(".")[0] == NET}
    settings = {key: value for key, value in settings.items() if key not in own_settings}
    with files.running(name, "is set up"):
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
            passes = passes / 3  # a forward pass is a third of forward and backward
        mixed = plugin.gradients and len({part.gradients for part in plugin.parts.values()}) == 2
        holding = (plugin.minimal_norm, not plugin.gradients, mixed, plugin.stops_early, bool(axes(plugin)))
        traits = dict(zip(TRAITS, holding, strict=True))
        traits |= {plugin.aim: plugin.aim != "error", plugin.knows: plugin.knows != "posterior"}
        held = frozenset(trait for trait, holds in traits.items() if holds)
        return Choice(label, component, passes, init, held, paper=paper)
    if net is not None:
        if own_settings:
            got = ", ".join(f"{name}={value}" for name, value in own_settings.items())
            raise InputError(f"net of defense {label!r}", expected=f"its own, {net}", got=got)
        own = installed("architecture", own_net(net, name))
        shown = _shown_net(component.name, own)
    else:
        own, shown = _net_of(label, own_settings, init, spec, kept)
    return Choice(label, component, passes, init, net=own, architecture=shown, paper=paper)


def _net_of(
    label: str, chosen: Mapping[str, Any], init: Choice | None, spec: RunSpec, kept: Kept | None
) -> tuple[Component, str]:
    """Net of a defense that brings none, and its name in tables: the named one, its start's, or the run's.

    `chosen` has the settings `arch` and `arch.PARAM` of the defense; without `arch` they alter the net of the run.
    """
    name = chosen.get(NET, spec.architecture)
    params = {key.removeprefix(f"{NET}."): value for key, value in chosen.items() if key != NET}
    if not chosen and init is not None and init.net is not None:
        return init.net, init.architecture
    if name == spec.architecture and not params:
        return _net(spec, kept), spec.architecture
    if not isinstance(name, str):
        expected = "a registered net or path/to/my.py:FUNCTION"
        raise InputError(f"hyperparameter {NET!r} of defense {label!r}", expected=expected, got=repr(name))
    if name == spec.architecture:
        name, params = spec.named(name), {**spec.set.get(NET, {}), **params}
    if kept is not None and (files.KEPT.fullmatch(name) or files.is_path(name)):
        raise _not_kept("defense", label)
    own = installed("architecture", name, params)
    return own, spec.architecture if own == _net(spec, kept) else _shown_net(label, own)


def _init(
    kind: str, label: str, start: str | None, spec: RunSpec, kept: Kept | None, heirs: tuple[str, ...]
) -> Choice | None:
    """The defense that provides initial weights, or the source of an attack."""
    if not start:
        return None
    if start in (*heirs, label):
        raise InputError(f"init_from of {label!r}", expected="a defense that does not start from it", got=repr(start))
    try:
        return _choose("defense", start, spec, kept, (*heirs, label))
    except InputError as error:
        raise InputError(f"{kind} {label!r} starts from {start!r}: {error}") from error


def _as_kept(kind: Kind, label: str, spec: RunSpec, kept: Kept, heirs: tuple[str, ...]) -> Choice:
    """A plugin in a stored file, as used in a run."""
    found = kept.choices[label]
    by_path = files.is_path(spec.named(label)) and found.component.file  # in the spec of a run
    if found.kind != kind or not (by_path or found.component.loaded_as == spec.named(label)):
        raise _not_kept(kind, label)
    init = _init(kind, label, found.init, spec, kept, heirs)
    if kind == "attack":
        return Choice(label, found.component, found.passes, init, frozenset(found.traits), paper=found.paper)
    net, shown = found.net or _net(spec, kept), spec.architecture
    if found.net:
        by = label if _chooses_net(spec.set.get(label, {})) else found.component.name
        shown = init.architecture if init is not None and init.net == found.net else _shown_net(by, found.net)
    return Choice(label, found.component, found.passes, init, net=net, architecture=shown, paper=found.paper)


def _from_outside(found: KeptChoice, name: str, settings: Any) -> bool:
    """True if the spec itself names what another distribution contains, so that its description has to be used.

    What advbench contains is never taken from a description, which may come with an untrusted board.
    """
    named = {name, *(each.partition("@")[0] for each in files.strings(settings))}
    parts = [part for part in (found.component, found.net) if part is not None and is_third_party(part)]
    outside = {part.name for part in parts} | {each for part in parts for each in part.parts or {}}
    return any(not _is_own(each) for each in outside & named)


def _is_own(name: str) -> bool:
    """True if advbench contains the plugin or net of a name without the help of other libraries."""
    kinds = [kind for kind in NAMED if registry().knows(kind, name)]
    return ":" not in name and any(registry().find(kind, name).distribution == CORE for kind in kinds)


def _names_kept(settings: Any) -> bool:
    """True if hyperparameters refer to a file."""
    return any(files.is_path(each) or files.KEPT.fullmatch(each) for each in files.strings(settings))


def _not_kept(kind: str, label: str) -> InputError:
    return InputError(
        f"{kind} {label!r}", expected=f"an entry in {INDEX}, because its file is not imported", got="none that matches"
    )


def _chooses_net(settings: Mapping[str, Any]) -> bool:
    """True if the settings of a defense name or alter its net."""
    return any(name.partition(".")[0] == NET for name in settings)


def _shown_net(owner: str, net: Component) -> str:
    """Name in tables of a net that belongs to a single plugin or label."""
    return f"{owner}.{net.name}" if net.file else net.name


def own_net(name: str, plugin: str) -> str:
    """Name of a plugin's own net; one in its file takes precedence over a registered one."""
    digest = files.digest_of(plugin)
    return f"{files.FILE}:{digest}:{name}" if digest and not registry().knows("architecture", name) else name


def _net(spec: RunSpec, kept: Kept | None) -> Component:
    """The net of the run."""
    name = spec.named(spec.architecture) if spec.architecture in spec.files else spec.architecture
    if kept is not None and spec.architecture in spec.files:
        here = files.KEPT.fullmatch(name)
        if kept.net is None or (here and (here["digest"], here["name"]) != (kept.net.file, kept.net.name)):
            raise _not_kept("architecture", spec.architecture)
        return kept.net
    if kept is not None and kept.net is not None and kept.net.name == name and not _is_own(name):
        return kept.net
    params = spec.set.get(NET, {})
    try:
        return installed("architecture", name, params)
    except InputError as error:
        hints = [
            f"for the net of {label}: --set {label}.{NET}.{param}={value}"
            for label in spec.defenses
            for param, value in params.items()
            if _takes(spec.set.get(label, {}).get(NET), param)
        ]
        if not hints or not str(error).startswith("unknown hyperparameter"):
            raise
        raise InputError(f"{error}; {'; '.join(hints)}") from error


def _takes(net: Any, param: str) -> bool:
    """True if a net has a hyperparameter."""
    with suppress(InputError):
        return isinstance(net, str) and param in net_params(registry().load("architecture", net)).model_fields
    return False


def installed(kind: Kind, name: str, params: Mapping[str, Any] | None = None) -> Component:
    """A plugin or net with its installed versions.

    Args:
        kind: kind of the name.
        name: registered name, or `path/to/my.py:NAME`. A function that builds a net may have an attribute `built_on`
            with the libraries that contain its code.
        params: resolved hyperparameters of a plugin, or given ones of a net.
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
    """Versions of the libraries and of the other plugins that a plugin uses."""
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
    """Version for keys of a plugin's results: its own `version`, or that of its distribution.

    An inherited version does not count as its own, because code that the class adds may change independently; but it is
    added if it is stated by a class of another distribution. An editable install also has a digest of its sources. Nets
    of the core have no version and depend on the schema of trainings only.

    Args:
        plugin: a class, or a function that makes nets.
        entry: its registered entry.
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

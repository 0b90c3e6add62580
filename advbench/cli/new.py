"""The commands for the user's own plugins: new, test."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.output import say
from advbench.errors import InputError, one_line, unknown_name

KINDS = ("defense", "attack", "architecture", "plugin")
INIT = '''"""Plugins for advbench. Hooks only, so that listing plugins imports neither torch nor the classes."""

from advbench.registry import hookimpl


@hookimpl
def advbench_register(register):
    """Declare the names that this distribution offers."""
    register.defense("my_defense", "PACKAGE.my_defense:MyDefense", "one-line description")
    register.attack("my_attack", "PACKAGE.my_attack:MyAttack", "one-line description")
'''
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "DISTRIBUTION"
version = "0.1.0"  # part of the keys of results: raise it when plugins give different results
description = "Plugins for advbench."
requires-python = ">=3.11"
dependencies = ["advbench"]

[project.entry-points.advbench]
PACKAGE = "PACKAGE"
"""
TESTS = '''"""The conformance suites of advbench: inherit one and supply a fixture. Run them with pytest."""

import pytest
from PACKAGE.my_attack import MyAttack
from PACKAGE.my_defense import MyDefense

from advbench.testing import AttackConformance, DefenseConformance


class TestMyAttack(AttackConformance):
    @pytest.fixture
    def attack(self):
        return MyAttack(steps=3)


class TestMyDefense(DefenseConformance):
    @pytest.fixture
    def defense(self):
        return MyDefense(stages=(1, 1), batch_size=16)
'''
# Test file that `advbench test` passes to pytest.
SUITE = """
import pytest
from advbench import testing
from advbench.cli.new import subject

KIND, NAME, PARAMS, NET, DATASET, DATA_ROOT = {given!r}


class Test{cls}(testing.{suite}):
    @pytest.fixture
    def {kind}(self):
        return subject(KIND, NAME, PARAMS, DATASET, DATA_ROOT)
"""
OWN_DATA = """
    @pytest.fixture
    def data(self):
        return subject("dataset", NAME, PARAMS, DATASET, DATA_ROOT)
"""
OWN_NET = """
    @pytest.fixture
    def module(self):
        return subject("architecture", NET, {}, DATASET, DATA_ROOT)().train()
"""


def new(
    kind: Annotated[
        str,
        typer.Argument(help="defense, attack, architecture, or plugin (a distribution with defense, attack and tests)"),
    ],
    name: Annotated[str, typer.Argument(help="name, such as my_defense")],
) -> None:
    """Write a working template of a file, or of a distribution, with comments on what to change."""
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise InputError("name", expected="letters, digits and underscores, such as my_defense", got=repr(name))
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("-", "_")).lower()
    texts = _plugin(module) if kind == "plugin" else {f"{module}.py": _template(f"my_{kind}", module)}
    for place in (module,) if kind == "plugin" else texts:
        if Path(place).exists():
            raise InputError(f"{place} already exists", remedy="choose another name, or move it")
    for place, text in texts.items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(text)
        say(place)
    for line in _next(kind, module):
        say(line)


def _template(name: str, module: str) -> str:
    """A file of `templates` under another name."""
    text = (Path(__file__).parent / "templates" / f"{name}.py").read_text()
    return text.replace(_class_of(name), _class_of(module)).replace(name, module)


def _class_of(module: str) -> str:
    return "".join(part.capitalize() for part in module.split("_") if part)


def _plugin(package: str) -> dict[str, str]:
    """The files of a distribution, by path."""
    names = {"PACKAGE": package, "DISTRIBUTION": package.replace("_", "-")}
    texts = {f"{package}/__init__.py": INIT, "pyproject.toml": PROJECT, f"tests/test_{package}.py": TESTS}
    for old, new_name in names.items():
        texts = {place: text.replace(old, new_name) for place, text in texts.items()}
    for name in ("my_defense", "my_attack"):  # registered names are labels, those of classes are not
        texts[f"{package}/{name}.py"] = _template(name, name).replace(f"--set {_class_of(name)}.", f"--set {name}.")
    return {f"{package}/{place}": text for place, text in texts.items()}


def _next(kind: str, module: str) -> list[str]:
    """Suggested next commands."""
    name = f"{module}.py:{module if kind == 'architecture' else _class_of(module)}"
    if kind == "plugin":
        return [
            "",
            f"pip install -e {module}",
            "advbench run --defense my_defense,adv_bnn --attack my_attack,eot_pgd",
            f"pytest {module}",
        ]
    others = {
        "defense": f"--defense {name},adv_bnn --attack eot_pgd",
        "attack": f"--defense adv_bnn --attack {name}",
        "architecture": f"--arch {name} --defense adv_bnn --attack eot_pgd",
    }
    return ["", f"advbench run {others[kind]}", f"advbench show {name}", f"advbench test {name}"]


def conform(
    name: Annotated[str, typer.Argument(help="path/to/my.py:NAME, or the name of a registered defense, attack or net")],
    *,
    set: Annotated[  # noqa: A002 - the option's name
        list[str] | None, typer.Option("--set", help="hyperparameter, as NAME.PARAM=VALUE; may be repeated")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="net to test a defense with [default: a small one, or its own]")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="data set to test with [default: 48 images of 6x6 pixels, or digits if a net needs it]"),
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="folder of the data sets")] = None,
) -> None:
    """Run the conformance suite on a defense, an attack or a net; exit code 1 if a test fails."""
    import importlib.util
    import tempfile

    from advbench.grid.spec import NAMED, own_net, parse_settings
    from advbench.models.nets import net_values
    from advbench.registry import files, registry

    if importlib.util.find_spec("pytest") is None:
        raise InputError("advbench test needs pytest, which is not installed", remedy="pip install pytest")
    kept = files.kept_name(name)
    kind = registry().kinds(name, NAMED)[0]
    settings = parse_settings(set or [])
    label = kept.rpartition(":")[2]
    for plugin in settings:
        if plugin not in (label, name):
            raise unknown_name("label in --set", plugin, [label])
    params = {key: value for each in settings.values() for key, value in each.items()}
    made = registry().load(kind, kept)
    net = kept if kind == "architecture" else ""
    if kind == "architecture":
        net_values(made, params)  # refuses unknown hyperparameters
    if kind == "defense":
        fields = made.Params.model_fields
        quick = {"stages": (1, 1), "batch_size": 16}
        params = {**{key: value for key, value in quick.items() if key in fields}, **params}
        own = made(**params).architecture
        net = files.kept_name(arch) if arch else ""
        if own and not arch:
            net = own_net(own, kept)
    misfit = partial(_misfit, net, params if kind == "architecture" else {}, data_root=data_root)
    if net and not dataset and misfit(None):
        dataset = "digits"
        say("the net does not fit 6x6 images: tested on digits; use --dataset for another data set")
    if net and dataset and (reason := misfit(dataset)):
        remedy = "choose another net with --arch, or images that it takes with --dataset"
        expected = f"a net for the images of {dataset}"
        raise InputError(
            f"net {net.rpartition(':')[2]!r}", expected=expected, got=f"an error ({reason})", remedy=remedy
        )
    suite = {"defense": "DefenseConformance", "attack": "AttackConformance"}.get(kind, "ArchitectureConformance")
    fixture = "make" if kind == "architecture" else kind
    given = (kind, kept, params, net, dataset, data_root)
    text = SUITE.format(given=given, suite=suite, kind=fixture, cls=re.sub(r"\W", "_", label))
    text += OWN_DATA if dataset else ""
    text += OWN_NET if net and kind == "defense" else ""
    import pytest

    pytest.register_assert_rewrite("advbench.testing")
    with tempfile.TemporaryDirectory(prefix="advbench-test-") as folder:
        path = Path(folder) / "test_conformance.py"
        path.write_text(text)
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "--rootdir", folder, "-c", "/dev/null"]
        code = pytest.main([*options, str(path)])
    if code:
        raise typer.Exit(1)


def _misfit(net: str, params: dict[str, object], dataset: str | None, data_root: str | None) -> str:
    """Why a net does not take the images of a data set, or of the suite; empty if it does."""
    from advbench.data.base import Data
    from advbench.errors import AdvbenchError
    from advbench.models.nets import build

    data = subject("dataset", net, params, dataset, data_root)
    assert isinstance(data, Data), "a data set was asked for"
    try:
        build(net, data, 0, params).eval()(data.batch(slice(2))[0])
    except (AdvbenchError, RuntimeError, ValueError) as error:
        return one_line(str(error).partition("\n")[0], 200)
    return ""


def subject(kind: str, name: str, params: dict[str, object], dataset: str | None, data_root: str | None) -> object:
    """Subject of a generated test: the plugin, a function that builds the net, or the data."""
    from advbench.data.datasets import limited, load_dataset
    from advbench.models.nets import build
    from advbench.registry import registry
    from advbench.testing import small_data

    data = limited(load_dataset(dataset, data_root).train, 256) if dataset else small_data()
    if kind == "dataset":
        return data
    if kind == "architecture":
        return lambda: build(name, data, 0, params)
    return registry().load(kind, name)(**params)  # type: ignore[arg-type]

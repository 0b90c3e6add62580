"""`advbench new` writes what runs at once; `advbench test` finds what breaks a contract."""

from __future__ import annotations

import ast
import copy
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Cli
from torch import nn

import advbench
from advbench import testing
from advbench.attacks import Threat
from advbench.cli.app import main
from advbench.cli.new import subject
from advbench.data.base import Data
from advbench.errors import InputError
from advbench.models import Classifier
from advbench.models.nets import build
from advbench.registry import registry
from advbench.training import Defense, TrainContext

QUICK = "--eps 0.1 --limit 20 --draws 2 --executor inline --device cpu --affinity none".split()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_new_writes_runs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "defense", "my_noise"]) == 0
    assert main(["new", "attack", "SignSteps"]) == 0
    assert main(["new", "architecture", "OneLayer"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "advbench run --defense my_noise.py:MyNoise,adv_bnn --attack eot_pgd" in out
    assert "advbench test sign_steps.py:SignSteps" in out
    assert "advbench test one_layer.py:one_layer" in out
    names = ["--arch", "one_layer.py:one_layer", "--set", "arch.filters=4"]
    names += ["--defense", "my_noise.py:MyNoise", "--attack", "sign_steps.py:SignSteps,fgsm"]
    assert main(["run", *names, *QUICK, "--set", "MyNoise.stages=[2]"]) == 0
    results = pd.read_csv("results/results.csv").set_index("attack")
    assert results.forward_passes["SignSteps"] == 10
    assert main(["show", "my_noise.py:MyNoise"]) == 0
    assert "standard deviation of the noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["defens", "x"], "unknown kind 'defens': .*did you mean 'defense'"),
        (["defense", "1 x"], "name: expected letters, digits and underscores, such as my_defense, got '1 x'"),
        (["defense", "there"], "there.py already exists; choose another name, or move it"),
        (["plugin", "folder"], "folder already exists"),
    ],
)
def test_new_replaces_nothing(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    Path("there.py").write_text("mine")
    Path("folder").mkdir()
    assert main(["new", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert Path("there.py").read_text() == "mine"
    assert not list(Path("folder").iterdir())


def test_a_new_plugin_is_found_and_passes_its_tests(cli: Cli, tmp_path: Path) -> None:
    assert cli("new", "plugin", "my-methods").returncode == 0
    folder = tmp_path / "my_methods"
    info = folder / "my_methods-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[advbench]\nmy_methods = my_methods\n")
    import tomllib

    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"advbench": {"my_methods": "my_methods"}}
    env = {"PYTHONPATH": f"{folder}:{__import__('os').environ.get('PYTHONPATH', '')}"}
    options = [*QUICK, "--set", "my_defense.stages=[1]"]
    done = cli("run", "--defense", "my_defense", "--attack", "my_attack", *options, env=env)
    assert done.returncode == 0, done.stderr
    import subprocess

    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder), "--rootdir", str(folder)]
    tests += ["-k", "stays_in or gives_a or stored"]  # the whole suites are those of test_conformance
    ran = subprocess.run(tests, env={**__import__("os").environ, **env}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


FILE = """
import torch
from torch import nn
from advbench.attacks import Attack
from advbench.models import Classifier
from advbench.training import Defense, ErmLoss

class Leaves(Attack):
    def run(self, clf, x, goal, threat, generator):
        return (x + 2 * threat.eps).clamp(0, 1)

def net(channels, height, width, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

def noisy(channels, height, width, classes):
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) + torch.randn(())
    return Noisy(channels * height * width, classes)

class InPlace(ErmLoss):
    presets = {"mnist": {"bacth_size": 1}}

    def fit(self, module, data, context=None):
        data.images.mul_(0.5)
        return super().fit(module, data, context)

class Ready(Defense):
    architecture = "net"

    def fit(self, module, data, context=None):
        return Classifier(net(*data.shape, data.classes)).requires_grad_(False)
"""


@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        ("net", 0, "5 passed"),
        pytest.param("noisy", 1, "test_deterministic_in_evaluation", marks=pytest.mark.slow),
        pytest.param("Leaves", 1, "attack Leaves left the l.* ball", marks=pytest.mark.slow),
        ("Ready", 1, "test_same_seed_same_classifier"),
    ],
)
def test_the_suite_says_what_breaks_a_contract(cli: Cli, name: str, code: int, found: str) -> None:
    import re

    Path("my.py").write_text(FILE)
    done = cli("test", f"my.py:{name}")
    assert done.returncode == code, done.stdout
    assert re.search(found, done.stdout)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.py").write_text(FILE)
    for arguments, message in (
        (["nosuch"], "unknown name 'nosuch'"),
        (["my.py"], "write my.py:NAME"),
        (["my.py:Leaves", "--set", "pgd.steps=1"], "unknown label in --set 'pgd': expected one of Leaves"),
    ):
        assert main(["test", *arguments]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pytest", None)
    assert main(["test", "my.py:Leaves"]) == 2
    assert "advbench test needs pytest, which is not installed; pip install pytest" in capsys.readouterr().err


FIXED = """
from torch import nn
from advbench.models import Classifier
from advbench.training import Defense

def build(channels, height, width, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

class Fixed(Defense):
    architecture = "build"

    def passes_per_image(self):
        return 0.0

    def fit(self, module, data, context=None):
        import copy
        return Classifier(copy.deepcopy(module).eval())
"""


def test_nothing_is_trained_by_a_net_for_larger_images(cli: Cli) -> None:
    Path("fixed.py").write_text(FIXED)
    done = cli("test", "fixed.py:Fixed")
    assert done.returncode == 0, done.stdout
    assert "tested on digits" in done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.parametrize("dataset", ["digits", "toy2d"])
@pytest.mark.parametrize(("name", "kind"), [("erm", "Defense"), ("fgsm", "Attack"), ("fcnn1", "Architecture")])
def test_a_small_net_fits_the_images_of_any_data_set(name: str, kind: str, dataset: str) -> None:
    made = subject("dataset", name, {}, dataset, None)
    suite = getattr(testing, f"{kind}Conformance")()
    if kind == "Architecture":
        suite.test_gives_finite_logits(subject("architecture", name, {}, dataset, None), made)
    elif kind == "Attack":
        net = testing.net_for(made).eval()
        suite.test_stays_in_ball_and_box(advbench.get_attack(name), Classifier(net), Threat("linf", 0.1), 3, made)
    else:
        defense = advbench.get_defense(name, stages=(1,), batch_size=64)
        suite.test_gives_a_classifier(defense, testing.net_for(made), made)


def test_a_net_that_does_not_fit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["erm", "--arch", "resnet20"], ["resnet20"]):
        assert main(["test", *words, "--dataset", "toy2d"]) == 2
        error = capsys.readouterr().err
        assert "net 'resnet20': expected a net for the images of toy2d, got an error (architecture 'resnet20'" in error
        assert len(error.strip().splitlines()) == 1


def test_a_failed_test_says_what_to_change() -> None:
    Path("my.py").write_text(FILE)
    bad = registry().load("defense", "my.py:InPlace")(stages=(1,), batch_size=16)
    with pytest.raises(AssertionError, match=r"fit changed the training images.*; pass copies"):
        testing.DefenseConformance().test_modules_that_work_in_place(bad, testing.small_net(), testing.small_data())
    with pytest.raises(AssertionError, match="fit changed the training images; train on copies"):
        testing.DefenseConformance().test_leaves_module_and_data(bad, testing.small_net(), testing.small_data())
    with pytest.raises(InputError, match="unknown hyperparameter of InPlace in its presets 'bacth_size'"):
        testing.DefenseConformance().test_presets_are_valid(bad)


def test_the_suites_have_no_bare_assertion() -> None:
    tree = ast.parse(Path(testing.__file__).read_text())
    bare = [each.lineno for each in ast.walk(tree) if isinstance(each, ast.Assert) and each.msg is None]
    assert not bare, f"assertions without a message in lines {bare}"


def test_a_plugins_template_names_its_labels() -> None:
    assert main(["new", "plugin", "mine"]) == 0
    text = Path("mine/mine/my_defense.py").read_text()
    assert "--set my_defense.NAME=VALUE" in text
    assert "--set MyDefense" not in text


class Loads(Defense):
    """Weights of the net under its own names, as the guide to plugins loads them."""

    def passes_per_image(self) -> float:
        return 0.0

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        own = copy.deepcopy(module).eval()
        own.load_state_dict(testing.net_for(data).state_dict())
        own[0].load_state_dict({"weight": torch.ones(4, 1, 3, 3), "bias": torch.zeros(4)})
        return Classifier(own).requires_grad_(False)


def test_a_fit_that_loads_weights_passes_the_suite() -> None:
    testing.DefenseConformance().test_modules_that_work_in_place(Loads(), testing.small_net(), testing.small_data())


def test_a_random_net_is_said_once() -> None:
    Path("my.py").write_text(FILE)
    data, suite = testing.small_data(), testing.ArchitectureConformance()
    make = partial(build, "my.py:noisy", data, 0)
    with pytest.raises(AssertionError, match="two passes in evaluation mode differ; randomness belongs to the `noise`"):
        suite.test_deterministic_in_evaluation(make, data)
    with pytest.raises(pytest.skip.Exception, match="random by itself"):
        suite.test_images_do_not_depend_on_their_batch(make, data)

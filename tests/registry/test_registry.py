"""Finding plugins: real distributions in a folder on the path, good, broken, misspelt and doubled."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from helpers import install

import advbench
from advbench.errors import InputError, MissingExtraError
from advbench.registry import KINDS, Registrar, Registry, hooks, registry
from advbench.training import ErmLoss

GOOD = """
from advbench.registry import hookimpl

@hookimpl
def advbench_register(register):
    register.attack("{name}", "{module}_impl:Thing", "a thing")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def test_built_ins_are_found_with_distribution_and_version() -> None:
    names = {(entry.kind, entry.name) for entry in registry().entries()}
    assert {("defense", "adv_bnn"), ("attack", "eot_pgd"), ("dataset", "digits"), ("architecture", "vgg16")} <= names
    entry = registry().find("defense", "adv_bnn")
    assert (entry.distribution, entry.target) == ("advbench", "advbench_defenses.adv_bnn:AdvBNN")
    assert entry.version
    assert registry().problems == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_loads(kind: str) -> None:
    for entry in registry().entries(kind):  # type: ignore[arg-type]
        if not entry.is_family:
            with contextlib.suppress(MissingExtraError):
                found = registry().load(entry.kind, entry.name)
                assert callable(found) or (kind == "paper" and found.is_dir())


@pytest.mark.parametrize("command", ["--help", "plugins"])
def test_listing_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from advbench.cli.app import main; main([sys.argv[1]]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pandas', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code, command], capture_output=True, check=False).returncode == 0


def test_importing_advbench_imports_no_torch() -> None:
    code = "import sys, advbench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_third_partys_names_appear(cli: Cli, site: Path) -> None:
    env = install(site, "good-plugin", GOOD.format(name="thing", module="good_plugin"), "3.1")
    listed = cli("plugins", env=env)
    assert listed.returncode == 0
    assert "thing" in listed.stdout
    assert "good-plugin 3.1" in listed.stdout


def test_a_broken_plugin_is_reported_and_stops_only_runs_that_name_it(cli: Cli, site: Path) -> None:
    env = install(site, "broken-plugin", "raise RuntimeError('half\\ninstalled')")
    listed = cli("plugins", env=env)
    assert listed.returncode == 1
    assert "adv_bnn" in listed.stdout
    reason = "failed to load: RuntimeError: half installed"
    assert listed.stderr.strip() == f"plugin 'broken_plugin' of broken-plugin {reason}"
    assert cli("plan", "--defense", "erm", "--attack", "fgsm", env=env).returncode == 0
    named = cli("plan", "--defense", "erm", "--attack", "its_attack", env=env)
    assert named.returncode == 2
    assert "failed to load: RuntimeError: half installed" in named.stderr
    assert len(named.stderr.strip().splitlines()) == 1


def test_a_third_partys_digits_break_no_run_on_other_data(cli: Cli, site: Path) -> None:
    body = """
from advbench.registry import hookimpl

@hookimpl
def advbench_register(register):
    register.dataset("digits", "theirs:load", "other digits")
"""
    env = install(site, "theirs", body)
    images = {f"x_{part}": np.random.default_rng(0).random((20, 6, 6), np.float32) for part in ("train", "test")}
    np.savez(site / "own.npz", **images, **{f"y_{part}": np.arange(20) % 2 for part in ("train", "test")})
    plan = ["plan", "--defense", "erm", "--attack", "fgsm", "--dataset"]
    assert cli(*plan, f"npz:{site / 'own.npz'}", env=env).returncode == 0
    both = cli(*plan, "digits", env=env)
    assert both.returncode == 2
    assert "dataset name 'digits' is registered twice, by advbench" in both.stderr


def test_a_misspelt_hook_is_caught(cli: Cli, site: Path) -> None:
    body = "from advbench.registry import hookimpl\n@hookimpl\ndef advbench_registr(register): pass\n"
    listed = cli("plugins", env=install(site, "misspelt", body))
    assert listed.returncode == 1
    assert "unknown hook 'advbench_registr'" in listed.stderr


def test_a_name_that_two_plugins_claim_is_an_error_that_names_both(cli: Cli, site: Path) -> None:
    env = install(site, "second", GOOD.format(name="pgd", module="second"), "0.4")
    run = cli("run", "--defense", "erm", "--attack", "pgd", env=env)
    assert run.returncode == 2
    assert "attack name 'pgd' is registered twice, by advbench " in run.stderr
    assert "second 0.4" in run.stderr
    listed = cli("plugins", env=env)
    assert listed.returncode == 2
    assert "second 0.4" in listed.stderr
    assert cli("plan", "--defense", "erm", "--attack", "fgsm", env=env).returncode == 0


def test_two_distributions_may_call_their_entry_points_alike(cli: Cli, site: Path) -> None:
    for name in ("one", "two"):
        env = install(site, name, GOOD.format(name=f"{name}_thing", module=name))
        (site / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(f"[advbench]\nplugin = {name}\n")
    listed = cli("plugins", env=env)
    assert listed.returncode == 0
    assert listed.stderr == ""
    assert "one_thing" in listed.stdout
    assert "two_thing" in listed.stdout


def test_a_module_that_two_distributions_claim_is_one_line(cli: Cli, site: Path) -> None:
    for name in ("one", "two"):
        env = install(site, name, GOOD.format(name="thing", module="one"))
        (site / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(f"[advbench]\n{name} = one\n")
    listed = cli("plugins", env=env)
    assert listed.returncode == 1
    assert re.fullmatch(
        r"plugin 'two' of two failed to load: InputError: its module is already loaded as one of one; .*\n",
        listed.stderr,
    )


FAMILY = """
from advbench.registry import hookimpl

@hookimpl
def advbench_register(register):
    register.attack("corners:", "corners:make", "steps into a corner")

def make(name):
    from advbench import Attack, InputError
    if name != "dark":
        raise InputError(f"corner {name!r}", expected="dark")

    class Corner(Attack):
        \"\"\"Takes eps off each pixel.\"\"\"

        def run(self, clf, x, goal, threat, generator):
            return (x - threat.eps).clamp(0, 1)

    return Corner
"""


def test_a_family_makes_what_its_names_stand_for(cli: Cli, site: Path) -> None:
    env = install(site, "corners", FAMILY)
    assert re.search(r"corners:NAME +steps into a corner  \[corners 1.0\]", cli("plugins", env=env).stdout)
    assert "Takes eps off each pixel." in cli("show", "corners:dark", env=env).stdout
    run = cli("run", "--defense", "erm", "--attack", "corners:dark", "--set", "erm.stages=[1]", env=env)
    assert run.returncode == 0, run.stderr
    assert "corners:dark" in run.stdout
    for name, line in {
        "corners:light": "corner 'light': expected dark",
        "corners": "unknown attack 'corners'",
        "corners:": "names of the form NAME, LIBRARY:NAME or NAME@LABEL",
        "corner:dark": "unknown attack 'corner:dark'",
    }.items():
        refused = cli("run", "--defense", "erm", "--attack", name, env=env)
        assert refused.returncode == 2
        assert line in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_a_target_that_cannot_be_imported_is_one_line(cli: Cli, site: Path) -> None:
    env = install(site, "hollow", GOOD.format(name="thing", module="hollow"))
    shown = cli("show", "thing", env=env)
    assert shown.returncode == 2
    expected = "attack 'thing' of hollow 1.0 cannot be loaded from hollow_impl:Thing: ModuleNotFoundError"
    assert expected in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "declare",
    [
        lambda register: register.attack("my attack", "m:C", ""),
        lambda register: register.attack("ok", "m.C", ""),
        lambda register: register.defense("ok", "m:", ""),
    ],
)
def test_names_and_targets_must_be_well_formed(declare: Callable[[Registrar], None]) -> None:
    with pytest.raises(InputError):
        declare(Registrar("dist", "1"))


def test_one_failing_registration_leaves_nothing_of_that_plugin() -> None:
    class Half:
        @hooks.hookimpl
        def advbench_register(self, register: Registrar) -> None:
            register.attack("half_done", "m:C", "")
            raise ValueError("then it broke")

    found = Registry()
    found._load(Half(), "half", __import__("importlib.metadata").metadata.distribution("advbench"))
    assert found.problems[0].endswith("ValueError: then it broke")
    with pytest.raises(InputError, match="unknown attack 'half_done'"):
        found.find("attack", "half_done")


def test_did_you_mean() -> None:
    with pytest.raises(InputError, match=r"did you mean 'adv_bnn'\?"):
        registry().find("defense", "advbnn")


@pytest.mark.parametrize(
    ("name", "given", "field", "expected"),
    [
        ("erm", 2, "stages", (2,)),
        ("erm", (2, 1), "stages", (2, 1)),
        ("fgsm_at", "8/255", "eps", 8 / 255),
        ("fgsm_at", np.float64(0.1), "eps", 0.1),
        ("fgsm_at", torch.tensor(0.25), "eps", 0.25),
        ("adv_bnn", np.int64(7), "steps", 7),
        ("apd", 8, "hidden", (8,)),
    ],
)
def test_hyperparameters_are_taken_as_people_write_them(name: str, given: object, field: str, expected: object) -> None:
    assert getattr(advbench.get_defense(name, **{field: given}).params, field) == expected


@pytest.mark.parametrize("given", ["8/0", "8/255/2", "eight", [0.1]])
def test_what_is_no_number_is_refused(given: object) -> None:
    with pytest.raises(advbench.InputError, match="hyperparameter 'eps"):
        advbench.get_defense("fgsm_at", eps=given)


@pytest.mark.parametrize("eps", [np.float32(0.25), np.array(0.25), torch.tensor(0.25)])
def test_a_radius_may_be_numpys_or_torchs_number(eps: Any) -> None:
    assert advbench.Threat("linf", eps) == advbench.Threat("linf", 0.25)


def test_dir_lists_all_that_users_import() -> None:
    assert {"evaluate", "get_attack", "Threat", "load_dataset"} <= set(dir(advbench))


def test_an_unknown_hyperparameter_of_a_preset_is_named() -> None:
    bad = type("Bad", (ErmLoss,), {"presets": {"digits": {"bacth_size": 1}}})
    with pytest.raises(InputError, match=r"unknown hyperparameter of Bad in its presets 'bacth_size'.*'batch_size'"):
        bad.resolve({}, "digits")

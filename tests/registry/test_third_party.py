"""The sample distribution, built, installed and used as a third party's would be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import Cli
from helpers import install

SAMPLE = Path(__file__).parents[1] / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the sample is installed."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(target), str(SAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": str(target)}


def test_its_plugins_are_listed_with_their_version(cli: Cli, installed: dict[str, str]) -> None:
    listed = cli("plugins", env=installed)
    assert listed.returncode == 0
    lines = [" ".join(line.split()) for line in listed.stdout.splitlines()]
    assert "corner every pixel to the far end of its interval [advbench-sample 1.2.3]" in lines
    assert "smooth plain training with smoothed labels [advbench-sample 1.2.3]" in lines


def test_its_plugins_run_to_a_leaderboard(cli: Cli, installed: dict[str, str], tmp_path: Path) -> None:
    options = "--defense smooth,erm --attack corner,fgsm --eps 0.2 --limit 100"
    settings = "--set smooth.stages=[8] --set erm.stages=[8]"
    done = cli("run", *options.split(), *settings.split(), env=installed)
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(tmp_path / "results" / "results.csv")
    accuracy = frame[frame.source == frame.defense].set_index(["defense", "attack"]).accuracy
    assert accuracy["smooth", "none"] > 0.9
    assert accuracy["smooth", "corner"] > accuracy["smooth", "fgsm"] + 0.1


def test_its_norms_are_respected(cli: Cli, installed: dict[str, str]) -> None:
    done = cli("run", "--defense", "smooth", "--attack", "corner", "--norm", "l2", env=installed)
    assert done.returncode == 2
    assert "norm of attack Corner: expected one of linf, got 'l2'" in done.stderr


def test_it_passes_the_suites_that_it_inherits(installed: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(SAMPLE)],
        env={**os.environ, **installed},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


DISHONEST = """
import torch
from torch import nn
from advbench.registry import hookimpl
from advbench_defenses.erm import ERM
from advbench.models import Classifier

@hookimpl
def advbench_register(register):
    register.defense("hooked", "dishonest:Hooked", "noise that the stored weights do not hold")

class Hooked(ERM):
    def fit(self, module, data, context=None):
        clf = super().fit(module, data, context)
        clf.module.register_forward_pre_hook(lambda m, x: (x[0] + 0.3 * torch.randn_like(x[0]),))
        return Classifier(clf.module, noise=True)
"""


def test_a_defense_that_its_stored_weights_do_not_give_back_is_refused(cli: Cli, tmp_path: Path) -> None:

    site = tmp_path / "site"
    site.mkdir()
    env = install(site, "dishonest", DISHONEST)
    done = cli("run", *"--defense hooked --attack fgsm --limit 20 --set hooked.stages=[1]".split(), env=env)
    assert done.returncode == 1
    assert "defense 'hooked' returned a classifier that cannot be stored" in done.stderr

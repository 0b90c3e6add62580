"""Defenses that mislead attacks are flagged, sound ones are not; tests of the audit's tests against known answers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Cli, Linear
from helpers import install
from scipy import stats
from torch import Tensor, nn
from zoo import BROKEN, Constant, Guesser, MedianFilter, SharedBrightness, Smoothed, broken

import advbench
from advbench.audit import Audit, Finding, markdown
from advbench.audit.cells import Cell, check_cells
from advbench.audit.checklist import CHECKLIST, INDICATORS
from advbench.audit.consistency import two_samples
from advbench.audit.findings import LEFT, with_verdicts
from advbench.audit.gradients import check_gradients
from advbench.audit.subject import Subject, stronger
from advbench.audit.surrogate import check_surrogate
from advbench.cli.app import main
from advbench.data.base import Data
from advbench.errors import InputError
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior
from advbench.testing import small_data, small_net

THREAT = advbench.Threat("linf", 0.15)
IMAGES = 100
# What the cheap checks alone do not see: by which finding of a whole audit, or by no finding as the number is true.
DEEPER = {
    "leak": "unseen",
    "loud": "saturation",
    "gradient noise": "finite differences",
    "lies in series": "attack's gradients",
    "lies to pure batches": "attack's gradients",
    "resize and pad": "",
}
SOUND = (
    "erm pgd_at pgd_at@large adv_bnn hierarchical_vi bnn rse mc_dropout sgld linear constant guesser smoothed".split()
)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    return advbench.load_dataset("digits").test.batch(slice(IMAGES))


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return trained("erm", 0, (10,)).module


def trained(name: str, seed: int, stages: tuple[int, ...], net: str = "small_cnn", **params: object) -> Classifier:
    train = advbench.load_dataset("digits").train
    module = advbench.build_architecture(net, train, seed=seed)
    defense = advbench.get_defense(name, stages=stages, batch_size=64, **params)
    return defense.fit(module, train, advbench.TrainContext(seed=seed))


def worse(audit: Audit) -> list[str]:
    return [each.check for each in audit.findings if each.verdict in ("failed", "warning")]


@pytest.mark.parametrize("kind", sorted(BROKEN.keys() - DEEPER.keys()))
def test_cheap_checks_flag_what_misleads_attacks(kind: str, plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    found = advbench.audit(broken(kind, plain, x, y), x, y, THREAT, quick=True)
    assert found.misleads
    assert found.passes <= 22


@pytest.mark.parametrize("seed", range(2))
def test_cheap_checks_find_nothing_in_sound_ones(seed: int, plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    for name, clf, labels in quick_ones(plain, y, seed):
        found = advbench.audit(clf, x, labels, THREAT, quick=True, seed=seed, name=name)
        assert worse(found) == [], name
        assert found.passes <= 22


def quick_ones(plain: nn.Module, y: Tensor, seed: int) -> list[tuple[str, Classifier, Tensor]]:
    from advbench.models import DropoutNoise, GaussianPosterior

    weights = torch.randn(10, 64, generator=torch.Generator().manual_seed(seed))
    train = advbench.load_dataset("digits").train
    dropout = Classifier(advbench.build_architecture("small_cnn", train, seed=seed).eval(), noise=DropoutNoise(0.3))
    return [
        ("plain", Classifier(plain), y),
        ("linear", Classifier(Linear(weights)), y),
        ("constant", Classifier(Constant()), y),
        ("guesser", Classifier(Guesser(0.9), noise=True), 0 * y),
        ("smoothed", Classifier(Smoothed(plain), noise=True), y),
        ("shared brightness", Classifier(SharedBrightness(plain), noise=True), y),
        ("median", Classifier(MedianFilter(plain)), y),
        ("gaussian", Classifier(plain, GaussianPosterior(plain, std=0.02)), y),
        ("dropout", dropout, y),
    ]


def test_a_gradient_of_a_part_of_the_function_is_found(plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Noise that depends on the image keeps the gradient's sign at most points; its size gives it away."""
    x, y = images
    for kind, wrong in (("gradient noise", True), ("resize and pad", False)):
        clf = broken(kind, plain, x, y)
        with clf.isolated():
            found = with_verdicts(check_gradients(Subject(clf, x, y, THREAT)))
        assert [each.check for each in found if each.verdict == "failed"] == ["gradient: finite differences"] * wrong


def test_a_gradient_that_only_the_attack_receives_is_asked_for_again(images: tuple[Tensor, Tensor]) -> None:
    """Logits tell nothing, nor do gradients that are asked for as no attack asks."""
    x, y = (each[:50] for each in images)
    robust = trained("fgsm_at", 0, (10,), eps=0.15).module  # an accuracy is left to question
    for kind in ("", "lies in series", "lies to pure batches"):
        found = advbench.audit(broken(kind, robust, x, y) if kind else robust, x, y, THREAT)
        assert ("consistency: attack's gradients" in worse(found)) is bool(kind)
        assert found.misleads is bool(kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_half_precision_is_no_lie(
    dtype: torch.dtype, plain: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(plain).to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.to(dtype)).float()

    x, y = images
    assert not advbench.audit(Half().eval(), x, y, THREAT, quick=True).misleads


def test_a_whole_audit_finds_labels_that_leaked(plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    data, (x, y) = advbench.load_dataset("digits"), images
    found = advbench.audit(
        broken("leak", plain, x, y), x[:40], y[:40], THREAT, other=Data(*data.validation.batch(slice(60)), 10, "digits")
    )
    assert "unseen: other images" in [each.check for each in found.failed]


def test_a_whole_audit_of_a_plain_net_finds_nothing(plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    data, (x, y) = advbench.load_dataset("digits"), images
    found = advbench.audit(plain, x[:40], y[:40], THREAT, other=data.validation)
    assert worse(found) == []
    assert found.ok
    assert found.accuracies["pgd"] < found.accuracies["clean"]
    assert "checks found a problem with the evaluation" in str(found)


def test_a_stand_in_that_the_defense_brings_is_attacked(plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    for kind, surrogate in (("bit depth", None), ("jpeg", plain), ("waking noise", plain)):
        subject = Subject(broken(kind, plain, x, y), x, y, THREAT, surrogate=surrogate)
        (found,) = with_verdicts(check_surrogate(subject, None))
        assert found.verdict == "failed"
        assert subject.accuracies["surrogate"] < 0.5


def test_nothing_hides_behind_an_accuracy_of_zero(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    net = Linear(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
    found = advbench.audit(net, x, y, advbench.Threat("linf", 0.9))
    assert {each.check for each in found.findings if "leaves an accuracy of only" in each.sentence} >= {
        "paired",
        "search",
    }


def test_bad_input_is_refused(plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    with pytest.raises(InputError, match="radius above 0"):
        advbench.audit(plain, x, y, advbench.Threat("linf", 0.0))
    with pytest.raises(InputError, match="at least 2"):
        advbench.audit(plain, x[:1], y[:1], THREAT)


@pytest.mark.parametrize(("gained", "lost", "p"), [(5, 0, 0.031), (6, 1, 0.063), (12, 4, 0.038), (20, 10, 0.049)])
def test_paired_attacks_on_a_deterministic_model_are_compared_by_mcnemar(gained: int, lost: int, p: float) -> None:
    one, other = np.ones((1, 60), bool), np.ones((1, 60), bool)
    other[0, :gained] = False
    one[0, gained : gained + lost] = False
    assert stronger(one, other) == pytest.approx(p, abs=1e-3)


def test_paired_attacks_on_a_random_model_are_compared_with_the_draws_variance() -> None:
    """Draws that are bad on all images at once are no evidence; the level is kept."""
    rng, tests = np.random.default_rng(0), []
    for _ in range(300):
        quality = rng.normal(0, 0.3, (2, 20, 1)) + rng.normal(0, 0.5, (1, 1, 100))
        one, other = rng.normal(0, 1, (2, 20, 100)) < quality + 0.5
        tests.append(stronger(one, other))
    assert np.mean(np.array(tests) < 0.05) < 0.09
    assert np.mean(np.array(tests) < 0.01) < 0.03
    worse_draws = rng.random((20, 100)) < 0.6
    assert stronger(rng.random((20, 100)) < 0.9, worse_draws) < 1e-6


def test_draws_of_two_ways_of_asking_are_told_apart_only_where_they_differ() -> None:
    rng = np.random.default_rng(0)
    alike = [two_samples(torch.tensor(rng.dirichlet(np.ones(4), (16, 5))), 8, seed) for seed in range(40)]
    assert stats.kstest(alike, "uniform").pvalue > 1e-3
    moved = rng.dirichlet(np.ones(4), (16, 5))
    moved[8:] = np.roll(np.sort(moved[8:]), 0, -1)
    assert two_samples(torch.tensor(moved), 8, 0) < 0.01


def test_tests_are_rejected_together_at_one_percent() -> None:
    made = [Finding(f"t{k}", "ok", "", p=p) for k, p in enumerate((0.001, 0.004, 0.02, 0.5))]
    assert [each.verdict for each in with_verdicts(made)] == ["failed", "ok", "ok", "ok"]
    small = Finding("small", "ok", "", p=1e-9, counts=False)
    assert with_verdicts([small])[0].verdict == "ok"


def test_cells_of_a_run_count_worst_case_by_its_parts() -> None:
    strong, weak = np.zeros((1, 100), bool), np.ones((1, 100), bool)
    parts = frozenset({"pgd", "square"})
    found = with_verdicts(
        check_cells(
            [
                Cell("pgd", "gradient", frozenset(), weak),
                Cell("square", "black box", frozenset(), strong),
                Cell("worst_case", "mixed", parts, strong),
            ]
        )
    )
    failed = [each for each in found if each.verdict == "failed"]
    assert [each.check for each in failed] == ["run: square against gradients"]
    whole = with_verdicts(
        check_cells([Cell("square", "black box", frozenset(), strong), Cell("worst_case", "mixed", parts, weak)])
    )
    assert [(each.check, each.about) for each in whole if each.verdict == "failed"] == [
        ("run: square against worst_case", "attack")
    ]


def test_published_lists_name_checks_that_exist(plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    assert len(INDICATORS) == 6
    assert all({**INDICATORS, **CHECKLIST}.values())


def test_a_page_shows_what_failed_and_what_to_run() -> None:
    bad = Finding("gradient: uphill", "failed", "2 of 9 | <b>.", "An upper bound.", "run square", p=1e-9)
    page = markdown([Audit("net_1", "linf 0.1", 9, (bad,), {"clean": 1.0})])
    assert "**failed** (the defense misleads attacks)" in page
    assert "2 of 9 \\| &lt;b>. An upper bound. Next: run square" in page


def test_the_command_audits_defenses_and_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--defense", "erm", "--set", "erm.stages=[4]", "--limit", "40", "--eps", "0.1"]
    assert main(["audit", *common, "--out", "audited"]) == 0
    assert "checks found a problem with the evaluation of erm, seed 0." in capsys.readouterr().out
    page, found = Path("audited/audit.md").read_text(), json.loads(Path("audited/audit.json").read_text())
    assert "## erm, seed 0" in page
    assert "Pintor" in page
    assert [each["ok"] for each in found] == [True]
    attacks = ["--attack", "pgd,square", "--set", "square.queries=20", "--set", "pgd.steps=3"]
    assert main(["run", *common, *attacks, "--out", "run"]) == 0
    assert main(["audit", "--out", "run"]) == 0
    checks = [each["check"] for each in json.loads(Path("run/audit.json").read_text())[0]["findings"]]
    assert "run: square against gradients" in checks
    assert "paired: square" not in checks
    assert main(["audit", "--out", "nowhere"]) == 2
    assert "nothing to audit in nowhere" in capsys.readouterr().err


BLIND = """
from torch import nn
from advbench.registry.hooks import hookimpl

class Blind(nn.Module):
    def __init__(self, channels, height, width, classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

    def forward(self, x):
        return self.net(x.detach())

def build(channels, height, width, classes):
    return Blind(channels, height, width, classes)

@hookimpl
def advbench_register(register):
    register.architecture("blind", "blind_net:build", "lets no gradient through")
"""


def test_a_defense_without_gradient_gets_numbers_flags_and_no_rank(cli: Cli, tmp_path: Path) -> None:
    env = install(tmp_path, "blind-net", BLIND)
    options = "--defense erm --arch blind --attack eot_pgd,square --eps 0.15 --limit 40 --affinity none"
    done = cli("run", *options.split(), "--set", "erm.stages=[8]", "--set", "square.queries=100", env=env)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "results" / "results.csv", keep_default_na=False).set_index("attack")
    assert rows.loc["none", "flags"] == "misleads_attacks"
    assert "no_gradient" in rows.loc["eot_pgd", "flags"].split(";")
    assert rows.loc["eot_pgd", "accuracy"] == rows.loc["none", "accuracy"]
    assert rows.loc["square", "accuracy"] < rows.loc["none", "accuracy"] - 0.2
    board = pd.read_csv(tmp_path / "results" / "leaderboard.csv")
    assert board["rank"].isna().all()
    assert board.worst_attack.tolist() == ["square"]
    assert "Without a rank" in (tmp_path / "results" / "leaderboard.md").read_text()


def test_the_page_has_a_row_for_each_attack_with_its_images() -> None:
    ok = Finding("paired: one step", "ok", "One step (fgsm) leaves an accuracy of 0.502, the gradient attack 0.480.")
    accuracies = {"clean": 0.95, "pgd": 0.3, "at linf 1": 0.0, f"pgd{LEFT}": 0.48, f"5 x steps{LEFT}": 0.47}
    counts = dict(zip(accuracies, (200, 200, 64, 61, 24), strict=True))
    page = markdown([Audit("mine", "linf 0.1", 200, (ok,), accuracies, counts)])
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert rows[2:7] == [
        ["none", "200", "0.950"],
        ["gradient attack", "200", "0.300"],
        ["gradient attack at linf 1", "64", "0.000"],
        ["gradient attack", "61 left unbroken", "0.480"],
        ["gradient attack with 5 times the steps", "24 left unbroken", "0.470"],
    ]


def test_sentences_of_passed_checks_name_the_attack_and_do_not_sound_like_failures() -> None:
    x, y = small_data(24).batch(slice(24))
    net = small_net().eval()
    found = advbench.audit(Classifier(net, GaussianPosterior(net, 0.05)), x, y, advbench.Threat("linf", 0.05))
    assert set(found.counts) == set(found.accuracies)
    for each in found.findings:
        if each.check.startswith(("paired", "convergence", "search", "unseen")) and each.verdict != "not checked":
            assert "attack" in each.sentence, each
        if each.verdict == "ok":
            assert "unchanged" not in each.sentence, each
            assert not each.sentence.startswith(("Draws agree on", "Accuracy")), each

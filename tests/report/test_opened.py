"""A run in Python: what `advbench.run` and `open_run` give."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib.axes
import numpy as np
import pandas as pd
import pytest
import torch

import advbench
from advbench.errors import InputError
from advbench.evaluation import detection
from advbench.grid.run import prepare_anew
from advbench.grid.spec import make_spec, parse_toml
from advbench.registry import files
from advbench.report import collect
from advbench.report.figures import all_figures, to_bytes
from advbench.store.records import Store

NET = """
from torch import nn

def tiny(channels, height, width, classes, hidden: int = 16):
    inputs = channels * height * width
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> advbench.Run:
    folder = tmp_path_factory.mktemp("opened")
    (folder / "net.py").write_text(NET)
    return advbench.run(
        "erm,bnn",
        ["fgsm", "fmn", "gray_box"],
        out=str(folder / "out"),
        store=str(folder / "store"),
        execution={"executor": "inline", "device": "cpu"},
        keep_examples=True,
        progress=False,
        architecture=f"{folder}/net.py:tiny",
        eps=[0.05, 0.1],
        limit=60,
        draws=4,
        affinity=["fgsm", "gray_box"],
        ood=["gaussian"],
        ood_scale=5.0,
        ood_signed=True,
        set={
            "erm": {"stages": [2]},
            "bnn": {"stages": [2]},
            "fmn": {"steps": 5},
            "arch": {"hidden": 24},
            "gray_box": {"attack": "fgsm", "radii": 4},
        },
    )


def test_tables_are_those_that_follow_from_the_records(done: advbench.Run) -> None:
    spec = make_spec(parse_toml(done.folder / "spec.toml"))
    report = collect(prepare_anew(spec, done.folder), Store(done.store))
    for name, made in report.tables().items():
        pd.testing.assert_frame_equal(done.report.tables()[name], made, check_dtype=False, check_categorical=False)
    pd.testing.assert_frame_equal(done.leaderboard, report.leaderboard)
    for (name, one), (other, two) in zip(all_figures(done.report), all_figures(report), strict=True):
        assert name == other
        assert to_bytes(one, "svg") == to_bytes(two, "svg")
    assert list(done.attacks.attack) == list(report.strengths.attack)
    assert (len(done.attacks), len(done.differences)) == (3, 3)
    assert repr(done).endswith("22 cells of 2 defenses)")


@pytest.mark.parametrize("defense", ["erm", "bnn"])
def test_a_classifier_gives_the_predictions_of_the_run(done: advbench.Run, defense: str) -> None:
    clf = done.classifier(defense)
    assert clf.stochastic == (defense == "bnn")
    from advbench.data.datasets import limited

    x, y = limited(advbench.load_dataset("digits").test, 60).batch(slice(None))
    for attack in ("none", "fgsm"):
        images = x if attack == "none" else done.examples(defense, attack)
        again = advbench.evaluate(clf, images, y, draws=4)
        kept = done.predictions(defense, attack)
        np.testing.assert_allclose(again.mean_probs, kept.mean_probs, atol=1e-5)
        frame = done.images(defense, attack)
        assert len(frame) == 60
        row = done.results.query("defense == @defense and source == @defense and attack == @attack").iloc[-1]
        assert frame.correct.mean() == pytest.approx(row.accuracy)
        assert frame.draws_correct.mean() == pytest.approx(row.draw_accuracy_mean)
        assert (frame.total >= frame.epistemic - 1e-6).all()


def test_examples_lie_in_their_ball(done: advbench.Run) -> None:
    from advbench.data.datasets import limited

    x, _ = limited(advbench.load_dataset("digits").test, 60).batch(slice(None))
    for eps in (0.05, 0.1):
        assert float((done.examples("bnn", "fgsm", eps) - x).abs().max()) == pytest.approx(eps, abs=1e-5)
    assert torch.equal(done.examples("erm", "fmn", 0.05), done.examples("erm", "fmn", 0.1))
    transferred = done.examples("erm", "fgsm", 0.1, source="bnn")
    assert torch.equal(transferred, done.examples("bnn", "fgsm", 0.1))


def test_detection_takes_the_examples_that_fooled_the_source_and_noise(done: advbench.Run) -> None:
    clean, found = done.detection_scores("bnn", "fgsm", "least_confidence", source="erm", fooled="erm")
    right = [
        done.predictions("erm", attack, source=source).ensemble_correct
        for attack, source in (("none", None), ("fgsm", "erm"))
    ]
    fooled = right[0] & ~right[1]
    assert 0 < len(found) == fooled.sum() < 60 == len(clean)
    expected = 1 - done.predictions("bnn", "fgsm", source="erm").mean_probs.max(1)
    np.testing.assert_allclose(found, expected[fooled], atol=1e-6)
    np.testing.assert_allclose(
        done.detection_scores("bnn", "fgsm", "least_confidence", source="erm", fooled=fooled)[1], found
    )
    clean, noise = done.detection_scores("bnn", "ood:gaussian", "epistemic")
    table = done.uncertainty.query("defense == 'bnn' and attack == 'ood:gaussian'").iloc[0]
    assert detection(clean, noise).auroc == pytest.approx(table.auroc_epistemic)
    with pytest.raises(InputError, match="unknown cell 'bnn, ood:uniform, seed 0'"):
        done.predictions("bnn", "ood:uniform")


@pytest.mark.parametrize("source", ["erm", "bnn"])
def test_detection_takes_the_examples_that_fooled_the_attacked_draw(done: advbench.Run, source: str) -> None:
    from advbench.data.datasets import limited

    _, y = limited(advbench.load_dataset("digits").test, 60).batch(slice(None))
    draw = advbench.get_attack("gray_box").attacked(done.classifier(source))
    fooled = (draw(done.examples(source, "gray_box")).argmax(1) != y).numpy()
    _, found = done.detection_scores("erm", "gray_box", "total", source=source, fooled=source)
    _, every = done.detection_scores("erm", "gray_box", "total", source=source)
    assert 0 < len(found) == fooled.sum() < len(every)
    np.testing.assert_array_equal(found, every[fooled])


def test_figures_are_axes(done: advbench.Run) -> None:
    found = done.figures()
    assert {"security-fgsm", "retention-fgsm", "affinity-fgsm"} <= found.keys()
    assert isinstance(found["security-fgsm"], matplotlib.axes.Axes)


BAD = [
    (lambda run: run.classifier("ermm"), "unknown defense 'ermm'.*did you mean 'erm'"),
    (lambda run: run.classifier("erm", seed=3), "unknown seed '3': expected one of 0"),
    (lambda run: run.predictions("erm", "pgd"), "unknown attack 'pgd'"),
    (lambda run: run.predictions("erm", "fgsm", 0.2), "unknown eps '0.2': expected one of 0.05, 0.1"),
    (lambda run: run.predictions("erm", "fmn", source="bnn"), "unknown source 'bnn': expected one of erm"),
    (lambda run: run.examples("erm", "none"), "clean images: expected an attack"),
]


@pytest.mark.parametrize(("ask", "message"), BAD, ids=range(len(BAD)))
def test_what_is_not_there_is_one_line(done: advbench.Run, ask: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(done)  # type: ignore[operator]


def test_tables_need_neither_store_nor_files_and_files_are_only_run_where_asked_for(
    done: advbench.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(done.folder, tmp_path / "copied")
    monkeypatch.setattr(files, "_known", {})
    moved = advbench.open_run(copied, str(tmp_path / "none"))
    assert len(moved.results) == 22
    with pytest.raises(InputError, match=r"set the run's store: open_run\(folder, store=URL\)"):
        moved.predictions("erm")
    with pytest.raises(InputError, match=r"classifier of 'erm' needs a file; open_run\(folder, run_files=True\)"):
        advbench.open_run(copied, done.store).classifier("erm")
    assert not advbench.open_run(copied, done.store, run_files=True).classifier("erm").stochastic


def test_a_board_is_opened_too() -> None:
    board = advbench.open_run(Path(__file__).parents[2] / "leaderboards" / "digits")
    assert set(board.leaderboard.defense) == set(board.results.defense)
    assert board.leaderboard["rank"].min() == 1


def test_a_folder_without_tables_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table .*results.csv: expected a table written by a run, got No such file"):
        advbench.open_run(tmp_path)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        InputError, match=r"table .*results.csv: expected a table written by a run, got none " r"with a column"
    ):
        advbench.open_run(tmp_path)


def test_failures_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "from advbench.training import ErmLoss, TrainParams\nclass Own(ErmLoss):\n    Params = TrainParams\n"
    Path("own.py").write_text(text + "    def fit(self, module, data, context=None):\n        raise ValueError('no')\n")
    options = {"limit": 10, "eps": [0.1], "progress": False, "execution": {"executor": "inline", "device": "cpu"}}
    with pytest.warns(UserWarning, match=r"failed: train Own, seed 0: file own.py, line 5, in fit: ValueError: no"):
        run = advbench.run("own.py:Own", "fgsm", **options)
    assert run.results["flags"].str.startswith("failed").all()
    with pytest.raises(InputError, match=r"unknown setting 'epss'.*did you mean 'eps'"):
        advbench.run("erm", "fgsm", epss=[0.1])
    with pytest.raises(InputError, match=r"unknown execution option 'worker'.*did you mean 'workers'"):
        advbench.run("erm", "fgsm", execution={"worker": 1})

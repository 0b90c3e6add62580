"""Recomputation reaches every record of a board: trainings, known draws and out-of-distribution images as well."""

from __future__ import annotations

import base64
import copy
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from advbench.boards.board import build, read_board
from advbench.boards.check import Findings, check
from advbench.boards.records import Records
from advbench.boards.rerun import _agree
from advbench.cli.app import main
from advbench.evaluation.predictions import wilson

OPTIONS = "--eps 0.1 --limit 20 --draws 2 --executor inline --device cpu --affinity none --history epoch"
SETTINGS = "bnn.stages=[2] ood.steps=2 known_draw.attack=fgsm known_draw.draws=2"
SEES_A_DRAW = """
from advbench_attacks.known_draw import KnownDraw

class Mine(KnownDraw):
    pass
"""
Record = dict[str, Any]
RERUN = ["--executor", "inline", "--rerun", "100"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a board whose attacks include ones on a known draw and on images of a file."""
    folder = tmp_path_factory.mktemp("rerun")
    images = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "data").mkdir()
        for name in ("one", "two"):
            np.savez(f"data/{name}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
            images = 255 - images
        Path("mine.py").write_text(SEES_A_DRAW)
        settings = [part for each in SETTINGS.split() for part in ("--set", each)]
        ood = ["--ood", "npz:data/one.npz,npz:data/two.npz,uniform"]
        attacks = ["--attack", "fgsm,ood,known_draw,mine.py:Mine", "--set", "Mine.attack=fgsm", "--set", "Mine.draws=2"]
        assert main(["run", "--defense", "bnn", *OPTIONS.split(), *attacks, *ood, *settings, "--out", "run"]) == 0
        shutil.copytree("run", "board", ignore=shutil.ignore_patterns("*.csv", "*.md", "*.html"))
        assert main(["leaderboard", "build", "board", "--store", ".advbench/store"]) == 0
        yield folder


@pytest.fixture
def board(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return Path(shutil.copytree(made / "board", tmp_path / "board"))


def test_all_cells_are_recomputed_and_equal(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert '"Mine"' in (board / "files/index.json").read_text()  # though it fills no row of the results
    assert main(["leaderboard", "check", str(board), *RERUN, "--data-root", ".", "--run-files"]) == 0
    # clean and fgsm, three data sets unperturbed and under `ood`, two attacks on a known draw
    assert "10 cells recomputed, 10 of them equal to the last digit" in capsys.readouterr().out


def test_cells_without_their_images_or_files_are_left_out_by_name(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root/data").mkdir(parents=True)
    shutil.copy("data/one.npz", tmp_path / "root/data/two.npz")
    assert main(["leaderboard", "check", str(board), *RERUN, "--data-root", str(tmp_path / "root")]) == 0
    out = capsys.readouterr().out
    assert "5 cells recomputed" in out
    assert "5 cells left out" in out
    for reason in ("Mine is in a file of the board", "one.npz is without its images", "two.npz is with other images"):
        assert reason in out


def _train_accuracy(records: dict[str, Record]) -> None:
    result = next(each for each in records.values() if each["kind"] == "train")["result"]
    result["training"]["train accuracy"] = 0.999


def _history(records: dict[str, Record]) -> None:
    result = next(each for each in records.values() if each["kind"] == "train")["result"]
    result["history"][0]["values"]["error"] = 0.0


def _posterior(records: dict[str, Record]) -> None:
    result = next(each for each in records.values() if each["kind"] == "train")["result"]
    result["statistics"]["std"] *= 3


def _known_draw(records: dict[str, Record]) -> None:
    for record in records.values():
        if record["inputs"].get("known"):
            forged = dict.fromkeys(("draw_accuracy", "draw_accuracy_min", "draw_accuracy_max"), 1.0)
            record["result"] |= {**forged, "draw_accuracy_interval": [0.9, 1.0]}


def _detection(records: dict[str, Record]) -> None:
    found = next(each for each in records.values() if each["inputs"].get("foreign"))["result"]
    found["detection"]["total"]["auroc"] = 1.0


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (_train_accuracy, r"training .* training.train accuracy 0.9990 on the board"),
        (_history, r"training .* history.0.values.error 0.0000 on the board"),
        (_posterior, r"training .* statistics.std"),
        (_known_draw, r"cell .* draw_accuracy 1.0000 on the board"),
        (_detection, r"cell .* detection.total.auroc 1.0000 on the board"),
    ],
    ids=lambda each: each.__name__.strip("_") if callable(each) else "",
)
def test_a_consistent_forgery_of_any_record_is_found(
    board: Path,
    forge: Callable[[dict[str, Record]], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
    *,
    elsewhere: bool,
) -> None:
    found = read_board(board).records
    records = {key: copy.deepcopy(dict(found.read_record(key) or {})) for key in found}
    forge(records)
    if elsewhere:  # as computed on a machine with other rounding errors
        records = {key: {**record, "artifact": "0" * 64} for key, record in records.items()}
    (board / "records.jsonl.gz").write_bytes(Records(records).to_bytes())
    build(board)
    assert list(check(board)[1].lines()) == []
    assert main(["leaderboard", "check", str(board), *RERUN, "--data-root", "."]) == 1
    assert re.search(f"a recomputed {message}", " ".join(capsys.readouterr().err.split()))


def test_a_training_is_compared_though_images_of_its_history_are_absent(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_board(board).records
    records = {key: copy.deepcopy(dict(found.read_record(key) or {})) for key in found}
    _train_accuracy(records)
    (board / "records.jsonl.gz").write_bytes(Records(records).to_bytes())
    build(board)
    (tmp_path / "root").mkdir()
    assert main(["leaderboard", "check", str(board), *RERUN, "--data-root", str(tmp_path / "root")]) == 1
    assert "training.train accuracy 0.9990 on the board" in " ".join(capsys.readouterr().err.split())


def test_other_data_are_an_error_and_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8), dtype=np.uint8), np.arange(40) % 10
    for place, y in (("here", labels), ("other", (labels + 1) % 10)):
        Path(place).mkdir()
        np.savez(f"{place}/own.npz", x_train=images, y_train=y, x_test=images, y_test=y)
    options = "--defense erm --set erm.stages=[1] --attack none --executor inline --device cpu --data-root here"
    assert main(["run", "--dataset", "npz:own.npz", *options.split(), "--out", "run"]) == 0
    shutil.copytree("run", "board", ignore=shutil.ignore_patterns("*.csv", "*.md", "*.html"))
    assert main(["leaderboard", "build", "board", "--store", ".advbench/store"]) == 0
    assert main(["leaderboard", "check", "board", *RERUN, "--data-root", "here"]) == 0
    capsys.readouterr()
    assert main(["leaderboard", "check", "board", *RERUN, "--data-root", "other"]) == 2
    assert re.search(r"expected content with SHA-256 \w{64}, got \w{64}; .*--data-root", capsys.readouterr().err)


@pytest.mark.parametrize("images", [20, 30, 300, 10_000])
def test_a_single_image_is_no_difference(images: int) -> None:
    def record(right: int, artifact: str) -> Record:
        share = right / images
        result = {"n_examples": images, "accuracy": share, "accuracy_interval": list(wilson(share, images))}
        return {"kind": "evaluate", "artifact": artifact, "result": {**result, "retention": {"total": {"area": share}}}}

    for one, other, agree in ((0, 1, True), (images, images - 1, True), (0, images // 2, False)):
        for pair in ((one, other), (other, one)):
            findings = Findings()
            _agree(record(pair[0], "a"), record(pair[1], "b"), "cell", findings)
            assert (list(findings.lines()) == []) == agree


def _elsewhere(before: Record, now: Record) -> list[str]:
    """Findings from two results of a cell whose predictions are not the same to the bit."""
    findings = Findings()
    _agree({"artifact": "a", "result": before}, {"kind": "evaluate", "artifact": "b", "result": now}, "cell", findings)
    return list(findings.lines())


def _result(right: NDArray[np.bool_], **others: Any) -> Record:
    """A result by its mask of right images."""
    share, limits = float(right.mean()), list(wilson(float(right.mean()), len(right)))
    bits = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"n_examples": len(right), "accuracy": share, "accuracy_interval": limits, "right": bits, **others}


def test_images_that_are_right_have_to_be_the_same_more_often_than_by_chance() -> None:
    rng = np.random.default_rng(0)
    for count in (100, 300, 1000):
        for share in (0.2, 0.5, 0.8):
            right = rng.random(count) < share
            elsewhere = np.where(rng.random(count) < 0.25, rng.random(count) < share, right)
            assert _elsewhere(_result(right), _result(elsewhere)) == []
            assert _elsewhere(_result(right), _result(~right)) != []
            order = np.argsort(right, stable=True)  # of which the wrong images come first, and the right ones last
            moved = np.roll(right[order], count // 2)[np.argsort(rng.random(count))]
            assert "no more often" in str(_elsewhere(_result(right), _result(moved)))
    few = np.arange(200) < 5
    assert _elsewhere(_result(few), _result(few[::-1])) == [], "five images tell nothing"


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({"flags": []}, {"flags": ["misleads_attacks"]}),
        ({"flags": ["one_draw"]}, {"flags": []}),
        ({"draws": 20}, {"draws": 1}),
        ({"attack": {"random": False}}, {"attack": {"random": True}}),
        ({"calibration": {"nll": 0.2}}, {"calibration": {"nll": 2.0}}),
        ({"uncertainty": {"total": 1.2}}, {"uncertainty": {"total": 0.3}}),
        ({"accuracy_interval": [0.0, 1.0]}, {}),
        ({"calibration.ece": 0.4, "calibration": {"ece": 0.0}}, {"calibration": {"ece": 0.4}}),
    ],
    ids=str,
)
def test_what_elsewhere_is_no_rounding_is_a_finding(stated: Record, found: Record) -> None:
    right, other = np.arange(200) % 2 == 0, np.arange(200) % 2 == (np.arange(200) < 10)
    for pair in ((stated, found), (found, stated)):
        assert len(_elsewhere(_result(right) | pair[0], _result(other) | pair[1])) == 1


def test_what_elsewhere_is_rounding_is_none() -> None:
    right, other = np.arange(200) % 2 == 0, np.arange(200) % 2 == (np.arange(200) < 10)
    one = _result(right, flags=["one_draw", "vanished_gradients"], calibration={"nll": 0.04}, draws=20)
    found = {"flags": ["one_draw", "ties"], "calibration": {"nll": 0.12}, "draws": 20}
    assert _elsewhere(one, _result(other, **found)) == []
    same: Record = dict.fromkeys(("draw_accuracy", "draw_accuracy_min", "draw_accuracy_max"), 0.5)
    same |= {"draw_accuracy_interval": [0.4, 0.6]}
    assert _elsewhere(one | same, one | same | {"flags": ["one_draw"]}) == [], (
        "though the predicted classes are the same"
    )


@pytest.mark.parametrize("options", [["--rerun-seed", "1"], ["--run-files"]], ids=str)
def test_options_of_a_rerun_without_one_are_refused(
    board: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", "check", str(board), *options]) == 2
    assert f"{options[0]}: expected --rerun as well" in capsys.readouterr().err

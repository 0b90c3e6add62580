"""Boards: made by a real run, regenerated, checked against every edit, computed anew."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from board_tools import contents, edit, files, lines, pages_drawn_once

from advbench.boards import build, load_board, staging
from advbench.boards.board import readme
from advbench.boards.certainty import classes_of
from advbench.boards.derived import NOT_AT_HAND
from advbench.boards.findings import Findings
from advbench.boards.plans import plan_as_made
from advbench.boards.rerun import Comparison, part_of
from advbench.boards.rows import derived_flags
from advbench.cli.app import main
from advbench.data.datasets import load_dataset
from advbench.errors import InputError, StoreError
from advbench.evaluation import wilson
from advbench.grid.identity import read_identity
from advbench.report.tables import records
from advbench.report.uncertainty import UNCERTAINTY_COLUMNS

pytestmark = pytest.mark.xdist_group("boards")  # which share one fixture
ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--attack fgsm,pgd --affinity fgsm,pgd --eps 0.05,0.15 --limit 40 --draws 4 --executor inline --device cpu "
    "--set pgd.steps=2 --set pgd.restarts=1"
).split()
TABLES = ("results", "models", "affinity", "retention", "uncertainty", "histograms")


@pytest.fixture(scope="module", autouse=True)
def _quick_pages() -> Iterator[None]:
    with pages_drawn_once():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a board of two defenses, and the store that it came from."""
    folder = tmp_path_factory.mktemp("made")
    settings = "--set erm.stages=[3] --set bnn.stages=[4]".split()
    places = ["--store", str(folder / "store"), "--out", str(folder / "board")]
    assert main(["run", "--defense", "erm,bnn", *OPTIONS, *settings, *places]) == 0
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.html"):
        (folder / "board" / name).unlink()
    build(folder / "board")
    return folder


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    """A copy of the board, to be spoilt."""
    return Path(shutil.copytree(made / "board", tmp_path / "board"))


def put(column: str, value: str, row: int = 2) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[row, column] = value

    return change


# Build


def test_pages_are_the_same_bytes_each_time(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(board)
    (board / "README.md").unlink()
    assert main(["leaderboard", "build", str(board)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(board / "README.md"), str(board / "index.html")]
    assert files(board) == before
    readme = (board / "README.md").read_text()
    assert "## This board" in readme
    assert readme.count("| ") > 10
    assert "results.csv" in readme


def test_a_spec_and_results_are_enough(board: Path) -> None:
    for path in board.iterdir():
        if path.name not in ("spec.toml", "results.csv"):
            path.unlink()
    written = build(board)
    assert [path.name for path in written] == ["README.md", "index.html"]
    assert "## Affinity" in (board / "README.md").read_text()
    assert not (board / "affinity.csv").exists()
    assert lines(board) == []


def test_what_a_run_writes_beside_the_board_is_kept_true(board: Path) -> None:
    (board / "leaderboard.csv").write_text("old\n")
    assert any("leaderboard.csv" in line for line in lines(board))
    build(board)
    assert lines(board) == []
    assert (board / "leaderboard.csv").read_text().startswith("rank,defense")


@pytest.mark.parametrize(
    "command",
    [
        ["report", "BOARD", "--format", "csv"],
        ["run", "--spec", "BOARD/spec.toml", "--defense", "erm", "--out", "BOARD"],
        ["run", "--spec", "BOARD/spec.toml", "--eps", "0.05", "--out", "BOARD"],
    ],
)
def test_what_is_published_is_not_written_over_by_less(
    command: list[str], made: Path, board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = board.parent / "partly"
    shutil.copytree(made / "store", store)
    for path in sorted((store / "records").rglob("*.json"))[::2]:
        path.unlink()
    before = files(board)
    options = [*(word.replace("BOARD", str(board)) for word in command), "--store", str(store)]
    assert main([*options, *(["--executor", "inline"] if command[0] == "run" else [])]) == 2
    said = capsys.readouterr().err
    assert re.search(r"expected (to keep the results|no board with results)", said)
    assert said.count("\n") == 1
    assert files(board) == before


def test_a_board_may_be_computed_again_in_its_place(made: Path, board: Path) -> None:
    before = files(board)
    run = ["run", "--spec", str(board / "spec.toml"), "--out", str(board), "--executor", "inline"]
    assert main([*run, "--store", str(made / "store")]) == 0
    assert {name: raw for name, raw in files(board).items() if name in before} == before
    assert main(["report", str(board), "--store", str(made / "store"), "--format", "csv"]) == 0


def test_a_boards_tables_are_drawn_without_its_store(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(board)
    assert main(["leaderboard", "build", str(board), "--format", "latex,svg"]) == 0
    made_now = {name: raw for name, raw in files(board).items() if name not in before}
    assert "leaderboard.tex" in made_now
    assert "figures/security-pgd.svg" in made_now
    assert {name: raw for name, raw in files(board).items() if name in before} == before
    assert lines(board) == []
    capsys.readouterr()
    assert main(["leaderboard", "build", str(board), "--format", "csv"]) == 2
    assert "unknown format 'csv'" in capsys.readouterr().err


# Check


def test_a_board_is_sound(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "check", str(board)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("sound: ")
    assert (len(told.out.splitlines()), told.err) == (1, "")
    assert json.loads((board / "data.json").read_text())["train_count"] == 1294


def test_every_edited_number_and_text_is_found(board: Path) -> None:
    """The pages hold the digests of the tables, so an edit is found in any column."""
    frame = pd.read_csv(board / "results.csv", dtype=str, keep_default_na=False)
    text = (board / "README.md").read_text()
    assert text == readme(load_board(board))
    whole = (board / "results.csv").read_bytes()
    for column in frame.columns:
        value = frame.loc[2, column]
        number = value.replace(".", "").isdigit()
        other = "7" if column in ("seed", "n_examples", "draws") else "0.375" if number else f"{value}x"
        edit(board, "results", put(column, other))
        assert hashlib.sha256((board / "results.csv").read_bytes()).hexdigest() not in text, column
        (board / "results.csv").write_bytes(whole)
    edit(board, "results", put("seconds", "9.0", 1))
    assert lines(board) == [
        "2 times: a file is not what the tables give, first README.md; 'advbench leaderboard build' makes it anew"
    ]


FORGED = {
    "dataset": ("mnist", "dataset is not what the spec says"),
    "architecture": ("vgg16", "architecture is not what the spec says"),
    "defense_params": ("{}", "defense_params is not what the spec says"),
    "attack_params": ("{}", "attack_params is not what the spec says"),
    "norm": ("l2", "norm is not what the spec says"),
    "seed": ("7", "a row that the spec does not lead to"),
    "eps": ("0.1", "a row that the spec leads to is not there"),
    "attack": ("apgd", "a row that the spec does not lead to"),
    "n_examples": ("80", "n_examples is not the spec's 40"),
    "draws": ("3", "draws is neither 1 nor the spec's 4"),
    "accuracy": ("0.51", "accuracy is not a whole number of images"),
    "accuracy_low": ("0.01", "the interval of accuracy of one draw is not Wilson's"),
    "accuracy_high": ("0.0", "accuracy is not between accuracy_low and accuracy_high"),
    "draw_accuracy_mean": ("nan", ""),
    "draw_accuracy_low": ("-0.5", "an accuracy is outside"),
    "draw_accuracy_min": ("1.0", "draw_accuracy_mean is not between"),
    "draw_accuracy_max": ("0.0", "draw_accuracy_mean is not between"),
    "forward_passes": ("-1.0", "a cost is negative"),
    "seconds": ("", "a number is missing or not finite"),
    "flags": ("fine", "a flag that advbench does not raise"),
    "key": ("0" * 64, "the key is not that of the spec"),
    "versions": ("{}", "the version of advbench is not stated"),
}


@pytest.mark.parametrize("column", FORGED)
def test_an_edit_is_found_although_the_pages_agree(board: Path, column: str) -> None:
    value, problem = FORGED[column]
    value = "" if value == "nan" else value
    edit(board, "results", put(column, value))
    found = contents(board)
    assert any(problem in line for line in found), found
    assert found


def test_all_findings_are_told_and_alike_ones_once(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[[2, 3, 4], "key"] = "0" * 64
        frame.loc[5, "flags"] = "fine"

    edit(board, "results", change)
    assert main(["leaderboard", "check", str(board)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert any(line.startswith("3 times: the key is not that") for line in told.err.splitlines())
    assert any(line.startswith("a flag that advbench does not raise") for line in told.err.splitlines())
    # Pages of such tables are not looked at.
    assert "is not what the tables give" not in told.err


@pytest.mark.parametrize("page", ["README.md", "index.html"])
def test_an_edited_page_is_found(board: Path, page: str) -> None:
    text = (board / page).read_text()
    assert "0.9" in text
    (board / page).write_text(text.replace("0.9", "0.8", 1))
    assert any(page in line for line in lines(board))
    (board / page).unlink()
    assert any(page in line for line in lines(board))


NUMERIC = (
    "accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high "
    "draw_accuracy_min draw_accuracy_max"
).split()


def test_swapped_values_are_found(board: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        erm = frame[frame.defense == "erm"]
        one = erm.index[0]
        other = next(index for index in erm.index if erm.accuracy[index] != erm.accuracy[one])
        frame.loc[[one, other], NUMERIC] = frame.loc[[other, one], NUMERIC].to_numpy()

    edit(board, "results", change)
    assert any("contradicts results.csv" in line or "is not that of results.csv" in line for line in contents(board))


def test_swapped_keys_are_found(board: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[[2, 3], "key"] = frame.loc[[3, 2], "key"].to_numpy()

    edit(board, "results", change)
    assert any("2 times: the key is not that of the spec" in line for line in contents(board))


@pytest.mark.parametrize("library", ["advbench", "torch", "numpy"])
def test_a_row_of_another_version_is_found(board: Path, library: str) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[3, "versions"] = json.dumps({**json.loads(frame.versions[3]), library: "9.9"}, sort_keys=True)

    edit(board, "results", change)
    assert any(f"rows were made by several versions of {library}" in line for line in contents(board))


def test_rows_of_another_version_throughout_are_found(board: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame["versions"] = [json.dumps({**json.loads(text), "advbench": "0.0.9"}) for text in frame.versions]

    edit(board, "results", change)
    found = contents(board)
    assert any("rows were made by advbench 0.0.9, and" in line for line in found)
    assert not any("the key is not that of the spec" in line for line in found), "a release leaves keys alone"


def test_a_local_part_is_no_other_release(board: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        known = json.loads(frame.versions[0])
        known["advbench"] = f"{known['advbench'].partition('+')[0]}+abc"
        frame["versions"] = json.dumps(known)

    for table in ("results", "models"):
        edit(board, table, change)
    assert not any("is installed" in line for line in contents(board))


def test_removed_doubled_and_moved_rows_are_found(board: Path) -> None:
    whole = (board / "results.csv").read_bytes()
    edit(board, "results", lambda frame: frame.drop(index=4))
    assert any("a row that the spec leads to is not there" in line for line in contents(board))
    (board / "results.csv").write_bytes(whole)
    edit(board, "results", lambda frame: pd.concat([frame, frame.iloc[[4]]]))
    assert any("a row is there more than once" in line for line in contents(board))
    (board / "results.csv").write_bytes(whole)
    edit(board, "results", lambda frame: frame.iloc[::-1])
    assert contents(board) == ["the rows are not in the plan's order"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("eps = [0.05, 0.15]", "eps = [0.05, 0.2]"),
        ("limit = 40", "limit = 50"),
        ("draws = 4", "draws = 8"),
        ("threads = 1", "threads = 2"),
        ("batch_size = 256", "batch_size = 128"),
        ('"steps" = 2', '"steps" = 3'),
        ("seeds = [0]", "seeds = [1]"),
        ('"erm", "bnn"]', '"erm", "bnn", "rse"]'),
    ],
)
def test_an_edited_spec_is_found(board: Path, old: str, new: str) -> None:
    text = (board / "spec.toml").read_text()
    assert old in text
    (board / "spec.toml").write_text(text.replace(old, new))
    assert contents(board)


DERIVED = {
    "models": [("key", "0" * 64), ("parameters", "7"), ("posterior", ""), ("versions", "{}"), ("defense", "rse")],
    "affinity": [
        ("affinity", "0.123"),
        ("clean_accuracy", "0.5"),
        ("transfer_accuracy", "0.5"),
        ("white_box_accuracy", "0.5"),
        ("affinity_low", "9.0"),
        ("source", "rse"),
        ("norm", "l2"),
    ],
    "retention": [("accuracy", "0.123"), ("area", "0.5"), ("n_kept", "9"), ("measure", "hope"), ("kept", "0.9")],
    "uncertainty": [("ece", "1.5"), ("total", "-1.0"), ("aleatoric", ""), ("images", "other"), ("attack", "apgd")],
    "histograms": [("counts", "40" + " 0" * 19), ("counts", "0 " * 19 + "40"), ("measure", "hope"), ("top", "2.6")],
}


@pytest.mark.parametrize("table", DERIVED)
def test_an_edit_of_another_table_is_found(board: Path, table: str) -> None:
    whole = (board / f"{table}.csv").read_bytes()
    for column, value in DERIVED[table]:
        edit(board, table, put(column, value, 0 if table == "models" else 1))
        assert any(f"{table}.csv" in line for line in contents(board)), (column, value)
        (board / f"{table}.csv").write_bytes(whole)
    edit(board, table, lambda frame: frame.drop(index=1))
    assert any("is not there" in line for line in contents(board))
    (board / f"{table}.csv").write_bytes(whole)
    edit(board, table, lambda frame: pd.concat([frame, frame.iloc[[1]]]))
    assert any("more than once" in line for line in contents(board))


OWN = {"defense": "bnn", "source": "bnn", "attack": "pgd", "eps": "0.15"}
CLEAN = {"defense": "erm", "attack": "none"}
CROSSED = {"source": "erm", "target": "bnn", "attack": "pgd", "eps": "0.15"}


def rows_of(frame: pd.DataFrame, wanted: Mapping[str, str]) -> pd.Series[bool]:
    mask = pd.Series(True, frame.index)
    for name, value in wanted.items():
        mask &= frame[name] == value
    assert mask.any()
    return mask


def puts(wanted: Mapping[str, str], **values: str) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        for name, value in values.items():
            frame.loc[rows_of(frame, wanted), name] = value

    return change


def widened(head: str, middle: str) -> Callable[[pd.DataFrame], None]:
    """The interval of a thousandth of an image."""

    def change(frame: pd.DataFrame) -> None:
        (row,) = frame.index[rows_of(frame, OWN)]
        frame.loc[row, [f"{head}_low", f"{head}_high"]] = list(map(str, wilson(float(frame.loc[row, middle]), 1e-3)))

    return change


def a_dip(frame: pd.DataFrame) -> None:
    """A curve on which images that were right are not any more."""
    curve = frame.index[rows_of(frame, {**CLEAN, "measure": "total"})]
    frame.loc[curve[1], "accuracy"] = "0.0"
    accuracies, kept = (list(map(float, frame.loc[curve, name])) for name in ("accuracy", "kept"))
    frame.loc[curve, "area"] = str(float(np.trapezoid([accuracies[0], *accuracies], [0.0, *kept])))


FORGERIES: dict[str, tuple[str, Callable[[pd.DataFrame], None], str]] = {
    "a wide interval": ("results", widened("accuracy", "accuracy"), "wider than so many draws"),
    "a wide interval of a draw": ("results", widened("draw_accuracy", "draw_accuracy_mean"), "wider than so many"),
    "one end alone": ("results", puts(OWN, accuracy_high="0.99999"), "the interval of accuracy"),
    "one end of a draw's": ("results", puts(OWN, draw_accuracy_high="0.99999"), "the interval of draw_accuracy"),
    "other costs": (
        "results",
        puts({"source": "erm", "defense": "bnn", "attack": "fgsm"}, forward_passes="77.0"),
        "the same examples cost other passes",
    ),
    "a flag of one draw": ("results", puts(CLEAN, flags="one_draw"), "the flag one_draw is raised where"),
    "perfect calibration": ("uncertainty", puts(OWN, brier="0.0", nll="0.0"), "better than so many wrong images"),
    "absurd calibration": ("uncertainty", puts(CLEAN, brier="1.9", nll="15.0"), "worse than so many right images"),
    "no calibration error": (
        "uncertainty",
        puts({**OWN, "defense": "erm", "source": "erm"}, ece="0.0", total="0.0", aleatoric="0.0"),
        "the calibration error is less than",
    ),
    "more uncertainty than parts": ("uncertainty", puts(OWN, epistemic="0.9"), "do not make up the whole"),
    "fewer nats than parts": ("uncertainty", puts(OWN, total="0.0"), "do not make up the whole"),
    "more than a guess": ("uncertainty", puts(OWN, total="2.4", aleatoric="2.4", epistemic="0.0"), "larger than of"),
    "votes of one draw": ("uncertainty", puts(CLEAN, variation_ratio="0.5"), "draws disagree more than so many"),
    "variance alone": ("uncertainty", puts(OWN, model_variance="0.7"), "contradict each other"),
    "a hidden AUROC": ("uncertainty", puts(OWN, auroc_total=""), "a number is missing"),
    "an AUROC of clean images": ("uncertainty", puts(CLEAN, auroc_total="1.0"), "where nothing can be measured"),
    "an AUROC of nothing": (
        "uncertainty",
        puts({**OWN, "defense": "erm", "source": "erm"}, auroc_variation_ratio="0.9"),
        "told apart by what is 0",
    ),
    "an AUROC of 1": (
        "uncertainty",
        puts(OWN, auroc_total="1.0", aupr_positive_total="0.9"),
        "without error has errors",
    ),
    "a dip": ("retention", a_dip, "more or fewer images are right"),
    "a boast": ("affinity", puts(CROSSED, reason="cheats <b>"), "an interval and its reason"),
    "another interval": ("affinity", puts(CROSSED, affinity_low="-99.0", affinity_high="-98.0"), "another affinity"),
    "no interval": ("affinity", puts(CROSSED, affinity_low="", affinity_high=""), "an interval and its reason"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_what_a_table_itself_shows_is_found(board: Path, what: str) -> None:
    table, change, problem = FORGERIES[what]
    edit(board, table, change)
    found = contents(board)
    assert any(problem in line for line in found), found


def test_an_affinity_whose_predictions_are_gone_says_so(board: Path) -> None:
    edit(board, "affinity", puts(CROSSED, affinity_low="", affinity_high="", reason=NOT_AT_HAND))
    assert contents(board) == []


def test_a_random_defense_of_one_draw_has_its_flag(board: Path) -> None:
    spec = (board / "spec.toml").read_text()
    (board / "spec.toml").write_text(spec.replace("draws = 4", "draws = 1"))
    edit(board, "results", puts({}, draws="1"))
    problem = "a random defense was judged by one draw, and no flag says so"
    assert any(problem in line and "first bnn" in line for line in contents(board))
    edit(board, "results", puts({"defense": "bnn"}, flags="one_draw"))
    assert not any("one_draw" in line or problem in line for line in contents(board))
    edit(board, "results", puts({"defense": "bnn", "attack": "none"}, flags=""))
    assert any(problem in line for line in contents(board))


def test_accuracy_above_chance_is_known_by_the_classes(board: Path) -> None:
    spec = (board / "spec.toml").read_text()
    (board / "spec.toml").write_text(spec.replace("0.05, 0.15", "0.05, 1.0"))
    low, high = wilson(0.9, 40)
    edit(board, "results", puts({"eps": "0.15"}, accuracy_low=str(low), accuracy_high=str(high), eps="1.0"))
    loaded, identity = load_board(board), read_identity(board)
    assert identity is not None
    plan = plan_as_made(loaded.spec, identity, loaded.results)
    rows = records(loaded.results)
    at = next(i for i, row in enumerate(rows) if row["eps"] == 1 and row["source"] == row["defense"])
    assert classes_of(loaded) == 10
    assert "above_chance_at_eps_1" in (derived_flags(rows, plan, 10)[at] or "")
    assert "above_chance_at_eps_1" not in (derived_flags(rows, plan)[at] or "")


def test_keys_of_other_sources_are_explained(board: Path) -> None:
    edit(board, "results", puts({}, key="0" * 64))
    found = contents(board)
    assert "no key fits although the settings do" in found[0]
    assert any("18 times: the key is not that of the spec" in line for line in found)


def test_a_plugin_that_is_not_installed_is_named(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv(board / "results.csv", dtype=str, keep_default_na=False)
    stated = json.dumps({**json.loads(frame.versions[0]), "their-plugin": "0.3"})
    edit(board, "results", put("versions", stated))
    assert main(["leaderboard", "check", str(board)]) == 2
    assert "expected their-plugin 0.3, by which rows of it were made, got none" in capsys.readouterr().err


def test_data_that_is_said_to_be_other_is_found(board: Path) -> None:
    said = json.loads((board / "data.json").read_text())
    (board / "data.json").write_text(json.dumps({**said, "sha256": "0" * 64}))
    build(board)
    found = lines(board)
    assert any("data.json does not describe the data set" in line for line in found)
    assert any("the key is not that" in line for line in found)


def test_a_flag_that_was_taken_away_is_found(board: Path) -> None:
    """A defense whose accuracy under PGD is far above that under FGSM, and no flag says so."""

    def change(frame: pd.DataFrame) -> None:
        for attack, value in (("fgsm", 0.0), ("pgd", 1.0)):
            low, high = wilson(value, 40)
            mine = (frame.attack == attack) & (frame.defense == "erm") & (frame.source == "erm") & (frame.eps == "0.15")
            for name in NUMERIC:
                end = {"low": low, "high": high}.get(name.rpartition("_")[2], value)
                frame.loc[mine, name] = str(end)

    edit(board, "results", change)
    assert any("the flags are not those that the intervals raise" in line for line in contents(board))


def test_keys_are_checked_without_the_data(
    board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a data set that would have to be downloaded: what `data.json` says of it is enough."""

    def absent(*_: object) -> None:
        raise InputError("the data set is not here")

    monkeypatch.setattr("advbench.boards.plans.load_dataset", absent)
    monkeypatch.setattr("advbench.boards.check.load_dataset", absent)
    assert main(["leaderboard", "check", str(board)]) == 0
    assert capsys.readouterr().out.strip().endswith("the data set was not at hand")
    (board / "data.json").unlink()
    assert main(["leaderboard", "check", str(board)]) == 2
    assert "the data set is not here" in capsys.readouterr().err


# Computed anew


def test_honest_cells_come_out_the_same(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rerun", "2", "--rerun-seed", "0", "--executor", "inline", "--device", "cpu"]
    assert main(["leaderboard", "check", str(board), *arguments]) == 0
    told = capsys.readouterr().out
    assert "passes of an image" in told
    assert told.splitlines()[-1].endswith("2 cells computed anew, 2 of them equal to the last digit")


def test_a_consistent_forgery_is_computed_anew(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that follows from the forged accuracies is made to follow, so only computing them again tells."""
    for path in board.iterdir():
        if path.name not in ("spec.toml", "results.csv", "data.json"):
            path.unlink()

    def change(frame: pd.DataFrame) -> None:
        low, high = wilson(1.0, 40)
        for row in frame.index[frame.defense == "erm"]:
            for name in NUMERIC:
                frame.loc[row, name] = str({"low": low, "high": high}.get(name.rpartition("_")[2], 1.0))

    edit(board, "results", change)
    build(board)
    assert lines(board) == []
    assert main(["leaderboard", "check", str(board), "--rerun", "4", "--rerun-seed", "1", "--device", "cpu"]) == 1
    assert "a cell computed anew is not what the board says" in capsys.readouterr().err


def test_what_else_is_false_is_computed_anew(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that nothing else in the tables contradicts: that of one AUROC, and the mean of single draws."""
    edit(board, "uncertainty", puts({"attack": "fgsm"}, auroc_total="0.123"))
    edit(board, "results", puts({"defense": "erm", "attack": "none"}, seconds="5.0"))
    build(board)
    assert lines(board) == []
    arguments = ["--rerun", "99", "--executor", "inline", "--device", "cpu"]
    assert main(["leaderboard", "check", str(board), *arguments]) == 1
    told = capsys.readouterr()
    line = told.err.splitlines()[-1]
    assert line.startswith("4 times: a cell computed anew has the board's accuracies, but not all of its numbers")
    assert line.endswith("seed 0: auroc_total of uncertainty.csv")
    assert "other digits" not in told.out


def test_a_mean_of_draws_is_computed_anew(board: Path) -> None:
    loaded = load_board(board)
    rows = records(loaded.results)
    (at,) = [i for i, row in enumerate(rows) if row["defense"] == "bnn" and row["attack"] == "none"]
    results = loaded.results.copy()
    results.loc[at, ["draw_accuracy_mean", "draw_accuracy_low", "draw_accuracy_high"]] = [0.0, 0.0, 0.1]
    identity = read_identity(board)
    assert identity is not None
    plan = plan_as_made(loaded.spec, identity, loaded.results)
    part = part_of(plan, [cell for cell in plan.cells if cell.attack is None and cell.defense.label == "bnn"])
    again = replace(loaded.report, results=loaded.results.iloc[[at]])
    findings, said = Findings(), list[str]()
    forged = replace(loaded, report=replace(loaded.report, results=results))
    done = Comparison(forged, again, part, findings, said.append).made()
    assert (done.cells, done.equal) == (1, 0)
    (line,) = findings.lines()
    assert "a cell computed anew is not what the board says" in line
    assert "draw_accuracy_mean 0.0000 on the board" in line
    assert "draw_accuracy_mean" in said[0]


# Bad input


def test_bad_input_is_one_line(board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["leaderboard", *arguments]) == 2
        told = capsys.readouterr()
        assert (told.out, len(told.err.splitlines())) == ("", 1)
        return told.err

    assert "expected a folder" in refused("check", str(tmp_path / "absent"))
    assert "no spec.toml" in refused("build", str(tmp_path))
    assert "--format: expected robustbench" in refused("export", str(board), "--out", "x", "--format", "paper")
    assert "expected" in refused("build", str(board), "--reference", str(board / "results.csv"))
    whole = (board / "results.csv").read_bytes()
    for broken in (b"", b"a,b\n1,2\n", b"\xff\xfe\0", whole.splitlines()[0] + b"\n"):
        (board / "results.csv").write_bytes(broken)
        assert "results.csv" in refused("check", str(board))
    for column, value in (("eps", "inf"), ("seed", "0.5"), ("accuracy", "high"), ("draws", "1.5"), ("eps", "")):
        (board / "results.csv").write_bytes(whole)
        edit(board, "results", put(column, value))
        assert "expected" in refused("check", str(board))
    (board / "results.csv").write_bytes(whole)
    (board / "data.json").write_text("[]")
    assert "data.json" in refused("check", str(board))
    (board / "data.json").unlink()
    (board / "spec.toml").write_text("defenses = 1")
    assert "setting" in refused("check", str(board))
    (board / "results.csv").unlink()
    assert "no results.csv" in refused("check", str(board))


@pytest.fixture(scope="module")
def shown(made: Path) -> Path:
    """The same board with images of other data: the digits upside down, eleven of them to be judged."""
    digits = load_dataset("digits")
    arrays = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        arrays[f"x_{name}"] = split.images[:11].flip(2).numpy()
        arrays[f"y_{name}"] = split.labels[:11].numpy()
    np.savez(made / "other.npz", **arrays)
    settings = f"--set erm.stages=[3] --set bnn.stages=[4] --ood npz:{made / 'other.npz'}".split()
    places = ["--store", str(made / "store"), "--out", str(made / "shown")]
    assert main(["run", "--defense", "erm,bnn", *OPTIONS, *settings, *places]) == 0
    return made / "shown"


FOREIGN = {"images": "ood", "defense": "bnn"}
FORGED_FOREIGN: dict[str, tuple[str, Callable[[pd.DataFrame], object], str]] = {
    "no rows": ("uncertainty", lambda frame: frame[frame.images != "ood"], "belongs to the results is not there"),
    "no counts": ("histograms", lambda frame: frame[frame.images != "ood"], "belongs to the results is not there"),
    "more images": ("histograms", puts(FOREIGN, counts="0 " * 19 + "999"), "the counts are not those of the images"),
    "other images": ("uncertainty", puts(FOREIGN, images="attacked"), "the images are not those of the attack"),
    "no AUROC": ("uncertainty", puts(FOREIGN, auroc_epistemic=""), "a number is missing"),
    "calibration": ("uncertainty", puts(FOREIGN, ece="0.1"), "where nothing can be measured"),
    "sure draws": ("uncertainty", puts(FOREIGN, epistemic="0.0"), "do not make up the whole"),
}


def test_images_of_other_data_are_checked(shown: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shown, tmp_path / "shown"))
    assert contents(copy) == []
    for what, (table, change, problem) in FORGED_FOREIGN.items():
        whole = (copy / f"{table}.csv").read_bytes()
        edit(copy, table, change)
        assert any(problem in line for line in contents(copy)), what
        (copy / f"{table}.csv").write_bytes(whole)
    # What nobody has computed says so: a row without numbers, and no counts.
    blank = dict.fromkeys(UNCERTAINTY_COLUMNS[9:], "")
    edit(copy, "uncertainty", puts(FOREIGN, **blank))
    edit(copy, "histograms", lambda frame: frame[(frame.images != "ood") | (frame.defense != "bnn")])
    assert contents(copy) == []


MANY = "9" * 23
BROKEN: dict[str, tuple[str, str, str]] = {
    "counts that are none": ("histograms", "counts", "a b"),
    "counts of other bins": ("histograms", "counts", "40"),
    "counts of many digits": ("histograms", "counts", " ".join(["1" * 5000, *["0"] * 19])),
    "counts of other digits": ("histograms", "counts", " ".join(["\u0664", *["0"] * 19])),
    "a range of nothing": ("histograms", "top", ""),
    "an endless range": ("histograms", "top", "inf"),
    "a range below 0": ("histograms", "top", "-1.0"),
    "a range too wide": ("histograms", "top", "1000.0"),
    "an endless accuracy": ("results", "accuracy", "inf"),
    "an endless interval": ("results", "accuracy_high", "-inf"),
    "an endless training": ("models", "seconds", "inf"),
    "a huge number": ("uncertainty", "nll", "1e308"),
    "a seed beyond 64 bits": ("results", "seed", MANY),
    "a seed of many digits": ("results", "seed", "9" * 5000),
    "images beyond 64 bits": ("results", "n_examples", MANY),
    "weights beyond 64 bits": ("models", "parameters", MANY),
    "kept images beyond 64 bits": ("retention", "n_kept", MANY),
    "a seed of nothing": ("retention", "seed", ""),
    "an eps beyond all": ("results", "eps", "1e308"),
    "a norm that is none": ("results", "norm", ".."),
    "parameters without end": ("results", "attack_params", "[" * 100_000),
    "parameters that are none": ("results", "defense_params", "[1]"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_table_that_is_none_is_one_line(board: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    table, column, value = BROKEN[what]
    edit(board, table, put(column, value, 1))
    for command in ("check", "build"):
        assert main(["leaderboard", command, str(board)]) == 2, command
        told = capsys.readouterr()
        assert (told.out, len(told.err.splitlines())) == ("", 1)
        assert f"{table}.csv" in told.err
        assert len(told.err) < 1000


def test_a_change_that_was_cut_off_has_a_marker_that_can_be_read(board: Path) -> None:
    (board / staging.MARKER).write_text("[" * 100_000)
    with pytest.raises(StoreError, match="cannot be ended"):
        staging.finish(board)


def test_a_board_is_exported_in_robustbenchs_form(board: Path, tmp_path: Path) -> None:
    assert main(["leaderboard", "export", str(board), "--format", "robustbench", "--out", str(tmp_path / "infos")]) == 0
    found = sorted((tmp_path / "infos").rglob("*.json"))
    assert [path.stem for path in found] == ["bnn", "erm"]
    # What is exported can be shown beside a board as what others report.
    assert main(["leaderboard", "build", str(board), "--reference", str(found[0].parent)]) == 0
    assert len(load_board(board).references) == 2
    assert "bnn.json" in (board / "README.md").read_text()
    assert lines(board) == []


# The boards of this repository

COMMITTED = sorted(path.parent for path in (ROOT / "leaderboards").glob("*/spec.toml"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_committed_boards_are_sound(folder: Path) -> None:
    assert lines(folder) == []

"""Boards: made by a real run, regenerated, checked against every edit, computed anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from board_pages import pages_drawn_once

from advbench.boards import build, load_board
from advbench.boards.board import readme
from advbench.boards.check import check, check_content
from advbench.boards.findings import Findings
from advbench.boards.identity import data_at_hand, plan_as_made, read_identity
from advbench.cli import main
from advbench.errors import InputError
from advbench.metrics import wilson

pytestmark = pytest.mark.xdist_group("boards")  # which share one fixture
ROOT = Path(__file__).parent.parent
OPTIONS = (
    "--attack fgsm,pgd --eps 0.05,0.15 --limit 40 --draws 4 --executor inline --device cpu "
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


def lines(folder: Path) -> list[str]:
    return list(check(folder).findings.lines())


def contents(folder: Path) -> list[str]:
    """What is wrong with the tables, whatever the pages say: as it would be once they were made anew."""
    findings, board = Findings(), load_board(folder)
    identity, dataset = read_identity(folder), data_at_hand(board.spec.dataset, None)
    assert identity is not None
    check_content(board, plan_as_made(board.spec, identity, board.results, dataset), findings)
    return list(findings.lines())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, table: str, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Change a table by its text, as an editor would."""
    path = folder / f"{table}.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    changed = change(frame)
    (frame if changed is None else changed).to_csv(path, index=False, lineterminator="\n")


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
    edit(board, "results", put("accuracy_low", "0.0", 1))
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
    "seconds": ("inf", "a number is missing or not finite"),
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
    (board / "index.html").write_text("<p>all is well</p>")
    assert main(["leaderboard", "check", str(board)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert any(line.startswith("3 times: the key is not that") for line in told.err.splitlines())
    assert any(line.startswith("a flag that advbench does not raise") for line in told.err.splitlines())
    assert any("2 times: a file is not what the tables give" in line for line in told.err.splitlines())


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
    assert any("the key is not that of the spec" in line for line in found)


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
    "histograms": [("counts", "40" + " 0" * 18), ("counts", "0 " * 19 + "40"), ("measure", "hope"), ("counts", "x")],
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

    monkeypatch.setattr("advbench.boards.identity.load_dataset", absent)
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

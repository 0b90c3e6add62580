"""Curves of convergence on a board: shown with it, checked, and kept when it grows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from board_tools import contents, edit, lines, pages_drawn_once

from advbench.boards import build, load_board
from advbench.cli.app import main
from advbench.errors import InputError
from advbench.report.curves import COLUMNS, read_curve, read_curves

pytestmark = pytest.mark.xdist_group("board curves")
OPTIONS = "--limit 40 --draws 4 --eps 0.05,0.15 --executor inline --device cpu --set bnn.stages=[3] --set pgd.steps=2"


@pytest.fixture(scope="module", autouse=True)
def _quick_pages() -> Iterator[None]:
    with pages_drawn_once():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with two curves, as the README says, and its store."""
    folder = tmp_path_factory.mktemp("made")
    board, store = folder / "board", ["--store", str(folder / "store")]
    assert main(["run", "--defense", "bnn", "--attack", "pgd", *OPTIONS.split(), *store, "--out", str(board)]) == 0
    for axis, values in (("steps", "1,2,4"), ("draws", "2,4")):
        spec = ["--spec", str(board / "spec.toml"), "--executor", "inline", "--device", "cpu"]
        places = [*store, "--out", str(board / "curves" / axis)]
        assert main(["curve", *spec, "--over", axis, "--values", values, *places]) == 0
    for path in board.glob("leaderboard.*"):
        path.unlink()
    build(board)
    return folder


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    """A copy of the board, to be spoilt."""
    return Path(shutil.copytree(made / "board", tmp_path / "board"))


def test_curves_are_shown_and_sound(board: Path) -> None:
    assert lines(board) == []
    loaded = load_board(board)
    assert list(loaded.curves) == ["draws", "steps"]
    readme, html = ((board / name).read_text() for name in ("README.md", "index.html"))
    for text in (readme, html):
        assert "Convergence" in text
    steps = loaded.curves["steps"].table
    end = f"{steps.accuracy.iloc[-1]:.3f} at 4"
    assert end in readme
    assert end in html
    assert "Accuracy against steps of the attack" in html
    assert "curves/steps/curve.csv" in readme
    # Where a curve passes through the board's own setting it is the same cell.
    own = loaded.results[(loaded.results.eps == 0.15) & (loaded.results.attack == "pgd")]
    assert steps[steps.value == 2].key.tolist() == own.key.tolist()


def cell(column: str, value: str, row: int = -1) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[frame.index[row], column] = value

    return change


@pytest.mark.parametrize(
    ("curve", "change", "finding"),
    [
        ("steps", cell("accuracy", "0.001", 1), "differs from results.csv"),
        ("steps", cell("accuracy", "1.5"), "cannot be"),
        ("steps", cell("accuracy_low", "0.99"), "cannot be"),
        ("steps", cell("key", "0" * 64), "not of the board's spec"),
        ("steps", cell("seed", "1"), "not of the board's spec"),
        ("steps", cell("eps", "0.05"), "not of the board's spec"),
        ("steps", cell("value", "5"), "not of the board's spec"),
        ("draws", cell("norm", "l2"), "not of the board's spec"),
        ("draws", cell("architecture", "fcnn1"), "not of the board's spec"),
        ("draws", cell("defense", "erm"), "that the board does not have"),
        ("draws", cell("attack", "fgsm"), "that the board does not have"),
        ("draws", cell("versions", '{"advbench": "9.9"}'), "another version"),
        ("draws", cell("flags", "unconverged", 0), "flag unconverged does not follow"),
    ],
)
def test_an_edited_curve_is_found(
    curve: str, change: Callable[[pd.DataFrame], None], finding: str, board: Path
) -> None:
    edit(board / "curves" / curve, "curve", change)
    assert any(finding in line for line in contents(board))
    assert any("README.md" in line or finding in line for line in lines(board))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell("axis", "width"), "column axis"),
        (cell("axis", "draws", 0), "column axis"),
        (cell("value", "1"), "column value"),
        (cell("value", "0", 0), "column value"),
        (cell("value", "two"), "expected a CSV file that advbench wrote"),
        (cell("accuracy", ""), "an accuracy with its interval in every row"),
        (lambda frame: frame.drop(columns="key"), "no column key"),
    ],
)
def test_a_table_that_is_no_curve_is_one_line(
    change: Callable[[pd.DataFrame], pd.DataFrame | None], message: str, board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(board / "curves" / "steps", "curve", change)
    for command in ("build", "check"):
        assert main(["leaderboard", command, str(board)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_an_empty_curve_is_none(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(InputError, match="column axis"):
        read_curve(tmp_path / "curve.csv")


def test_curves_along_one_axis_are_told_apart(board: Path) -> None:
    path = board / "curves" / "steps" / "curve.csv"
    copies = [Path(shutil.copy(path, board / f"{name}.csv")) for name in "abc"]
    assert list(read_curves(copies)) == ["steps", "steps, pgd", f"steps, {copies[2].as_posix()}"]


def test_a_board_that_grows_keeps_its_curves(made: Path, board: Path, tmp_path: Path) -> None:
    options = ["--set", "erm.stages=[1]", "--executor", "inline", "--device", "cpu", "--store", str(made / "store")]
    run = ["run", "--spec", str(board / "spec.toml"), "--defense", "erm", *options, "--out", str(tmp_path / "mine")]
    assert main(run) == 0
    packed = str(tmp_path / "erm.zip")
    submit = ["--defense", "erm", "--store", str(made / "store"), "--out", packed]
    assert main(["leaderboard", "submit", str(tmp_path / "mine"), *submit]) == 0
    assert main(["leaderboard", "merge", str(board), packed]) == 0
    assert lines(board) == []
    assert "Convergence" in (board / "README.md").read_text()
    assert set(load_board(board).results.defense) == {"bnn", "erm"}

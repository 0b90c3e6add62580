"""Boards: everything follows from the records, and the records from the spec."""

from __future__ import annotations

import copy
import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import browsing, in_browser, violations

from advbench.boards.board import build, locked, read_board, read_inside, write_inside
from advbench.boards.check import Findings, check
from advbench.boards.merge import Merged, merge
from advbench.boards.records import Records
from advbench.boards.rerun import _agree as agree
from advbench.boards.rerun import rerun
from advbench.boards.site import site_files
from advbench.boards.submission import open_submission
from advbench.cli.app import main
from advbench.errors import InputError, StoreError
from advbench.grid.execution import Execution
from advbench.report.shape import flaw
from advbench.store.records import Store
from advbench.store.storage import StoreWarning

pytestmark = pytest.mark.xdist_group("boards")  # which share one fixture
ROOT = Path(__file__).parents[2]
OPTIONS = "--attack fgsm,pgd --eps 0.05,0.15 --limit 40 --draws 4 --executor inline --device cpu --set pgd.steps=2"
SETTINGS = {
    "erm": "erm.stages=[3]",
    "bnn": "bnn.stages=[4]",
    "mc_dropout": "mc_dropout.stages=[3]",
    "bnn@again": "bnn@again.stages=[5]",
}
AlteredRecords = dict[str, dict[str, Any]]


def run(folder: Path, out: str, defenses: str) -> Path:
    settings = [part for name in defenses.split(",") for part in ("--set", SETTINGS[name])]
    places = ["--store", str(folder / "store"), "--out", str(folder / out)]
    assert main(["run", "--defense", defenses, *OPTIONS.split(), *settings, *places]) == 0
    return folder / out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a board of two defenses, submissions of two more, and their store."""
    folder = tmp_path_factory.mktemp("made")
    out = run(folder, "run", "erm,bnn")
    (folder / "board").mkdir()
    for name in ("spec.toml", "data.json"):
        shutil.copy(out / name, folder / "board" / name)
    assert main(["leaderboard", "build", str(folder / "board"), "--store", str(folder / "store")]) == 0
    for out_name, label in (("third", "mc_dropout"), ("fourth", "bnn@again")):
        run(folder, out_name, label)
        assert submit(folder, out_name, label, folder / f"{out_name}.zip") == 0
    return folder


def submit(folder: Path, run_dir: str, label: str, path: Path, *more: str) -> int:
    places = ["--store", str(folder / "store"), "--out", str(path)]
    return main(["leaderboard", "submit", str(folder / run_dir), "--defense", label, *places, *more])


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "board", tmp_path / "board"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def findings(folder: Path) -> list[str]:
    return list(check(folder)[1].lines())


def edit(folder: Path, change: Callable[[AlteredRecords], object]) -> None:
    """Change records as somebody would who seals them anew."""
    found = read_board(folder).records
    records = {key: dict(found.read_record(key) or {}) for key in found}
    change(records)
    (folder / "records.jsonl.gz").write_bytes(Records(records).to_bytes())


def evaluation(records: AlteredRecords) -> dict[str, Any]:
    return next(record for record in records.values() if record["kind"] == "evaluate")


# Build and check


def test_a_board_holds_and_its_files_are_the_same_bytes_each_time(board: Path, made: Path) -> None:
    names = {"spec.toml", "data.json", "records.jsonl.gz", "README.md", "results.csv", "leaderboard.csv", "models.csv"}
    assert names <= set(files(board))
    assert findings(board) == []
    before = files(board)
    build(board)
    assert files(board) == before
    build(board, Store(str(made / "store")))
    assert files(board) == before


def test_its_tables_are_those_of_the_run(board: Path, made: Path) -> None:
    for name in ("results.csv", "leaderboard.csv", "affinity.csv", "retention.csv", "models.csv"):
        assert (board / name).read_bytes() == (made / "run" / name).read_bytes()


def test_records_say_nothing_of_where_and_when(board: Path) -> None:
    found = read_board(board).records
    records = [found.read_record(key) or {} for key in found]
    assert len(records) == 2 + 2 + 2 * 2 * 2 + 2 * 2
    for record in records:
        assert not {"ran", "memory"} & record.keys()
        assert os.uname().nodename not in json.dumps(record)
    evaluations = [record for record in records if record["kind"] == "evaluate"]
    assert all(record["result"]["right"] for record in evaluations)


EDITS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a number in a table": ("results.csv", lambda raw: raw.replace(b"0.9", b"0.8", 1), "results.csv, line"),
    "a number in README": ("README.md", lambda raw: raw.replace(b" 0.", b" 1.", 1), "README.md, line"),
    "a row less": ("results.csv", lambda raw: b"".join(raw.splitlines(True)[:-1]), "results.csv, line"),
    "a swapped row": (
        "results.csv",
        lambda raw: b"".join([*(lines := raw.splitlines(True))[:1], lines[2], lines[1], *lines[3:]]),
        "results.csv, line 2",
    ),
    "a line more": ("affinity.csv", lambda raw: raw + b"\n", "affinity.csv"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_the_records_do_not_say_is_found(board: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, change, place = EDITS[name]
    (board / path).write_bytes(change((board / path).read_bytes()))
    capsys.readouterr()
    assert main(["leaderboard", "check", str(board)]) == 1
    found = capsys.readouterr().err
    assert f"a file does not match the records: {place}" in found
    assert found.count(f"if the records are right, run advbench leaderboard build {board}") == 1


def test_a_file_less_and_a_table_more_are_found(board: Path) -> None:
    (board / "models.csv").unlink()
    (board / "extra.csv").write_text("defense,accuracy\nmine,1.0\n")
    found = findings(board)
    assert "a file derived from the records is missing: models.csv" in found
    assert "a file shows results that are not derived from records: extra.csv" in found


@pytest.mark.parametrize("name", ["sub/results.csv", "security.svg", "leaderboard.html", "sub/leaderboard.md"])
def test_what_shows_results_and_follows_from_no_record_is_found(board: Path, name: str) -> None:
    (board / name).parent.mkdir(exist_ok=True)
    (board / name).write_bytes((board / "results.csv").read_bytes())
    assert findings(board) == [f"a file shows results that are not derived from records: {name}"]


def test_hidden_folders_and_what_others_evaluated_may_lie_in_a_board(board: Path) -> None:
    for name in (".git/x.csv", "LICENSE", "references/notes.csv"):
        (board / name).parent.mkdir(exist_ok=True)
        (board / name).write_text("x")
    assert findings(board) == []


def test_an_edited_record_is_damaged_and_a_sealed_one_leads_to_other_tables(board: Path) -> None:
    raw = gzip.decompress((board / "records.jsonl.gz").read_bytes())
    (board / "records.jsonl.gz").write_bytes(gzip.compress(raw.replace(b'"accuracy":', b'"accuracy":1', 1)))
    with pytest.raises(
        InputError, match=r"line \d+ of records.jsonl.gz of .*: expected a sealed record .*damaged or edited"
    ):
        check(board)
    (board / "records.jsonl.gz").write_bytes(gzip.compress(raw))
    edit(board, lambda records: evaluation(records)["result"].update(accuracy_interval=[0.0, 1.0]))
    assert "a file does not match the records" in findings(board)[0]


def put(*place: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    """A change of one value of a record, or the removal of it where the value is `...`."""

    def change(record: dict[str, Any]) -> None:
        for name in place[:-1]:
            record = record[name]
        if value is ...:
            del record[place[-1]]
        else:
            record[place[-1]] = value

    return change


IMPOSSIBLE = {
    "no result": put("result", value={}),
    "a result that is none": put("result", value=[1]),
    "no versions": put("versions", value=...),
    "versions that are none": put("versions", value="0.1.0"),
    "a version that is none": put("versions", "torch", value=["2"]),
    "seconds that are text": put("seconds", value="1"),
    "no accuracy": put("result", "accuracy", value=...),
    "an accuracy above 1": put("result", "accuracy", value=9.0),
    "an accuracy other than its images'": put("result", "accuracy", value=0.5),
    "an accuracy as text": put("result", "accuracy", value="0.5"),
    "an interval of one": put("result", "accuracy_interval", value=[0.5]),
    "an interval elsewhere": put("result", "accuracy_interval", value=[0.0, 0.01]),
    "bits that are none": put("result", "right", value="???"),
    "bits of other images": put("result", "right", value="/////w=="),
    "images of another count": put("result", "n_examples", value=3),
    "draws of another count": put("result", "draws", value=7),
    "no attack": put("result", "attack", value=None),
    "negative passes": put("result", "attack", "forward_passes", value=-1.0),
    "flags that are none": put("result", "flags", value=5),
    "a histogram of other images": put("result", "histograms", "total", value=[1] * 20),
    "a histogram less": put("result", "histograms", "total", value=...),
    "retention cut off": put("result", "retention", "total", "counts", value=[1]),
    "no calibration": put("result", "calibration", value=...),
    "retention that ends elsewhere": put("result", "retention", "total", "accuracies", value=[1.0] * 5),
    "an area of another curve": put("result", "retention", "total", "area", value=0.123),
    "an interval of retention elsewhere": put("result", "retention", "total", "area_interval", value=[0.0, 0.01]),
    "a detection above 1": put("result", "detection", "total", "auroc", value=1.5),
    "accepted errors that are none": put("result", "accepted_errors", "total", value=0.99),
    "no accepted errors": put("result", "accepted_errors", value=...),
    "a calibration error above 1": put("result", "calibration", "ece", value=1.5),
    "a lowest draw above the mean": put("result", "draw_accuracy_min", value=1.0),
    "a highest draw below the mean": put("result", "draw_accuracy_max", value=0.0),
    "a lowest draw of part of an image": put("result", "draw_accuracy_min", value=0.0001),
    "an uncertainty of another histogram": put("result", "uncertainty", "total", value=2.3),
    "a share broken that draws do not give": put("result", "persistence", 0, "broken", value=0.0),
    "more than there is": put("result", "praise", value="x" * 1000),
    "a field more": put("praise", value="x" * 1000),
    "an artifact that is none": put("artifact", value=7),
}


def test_records_that_no_task_leaves_are_found(board: Path) -> None:
    edit(board, lambda records: evaluation(records)["result"].update(accuracy=9.0))
    (found,) = findings(board)
    assert re.match("an impossible record: evaluate .*: accuracy: Input should be less", found)


@pytest.fixture(scope="module")
def evaluated(made: Path) -> tuple[dict[str, Any], Any]:
    """A record of attacked images, and its task's inputs."""
    board = read_board(made / "board")
    key = board.plan.cells[-1].key
    return board.records.read_record(key) or {}, board.plan.tasks[key].inputs


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_evaluation_leaves_is_told(evaluated: tuple[dict[str, Any], Any], name: str) -> None:
    record, inputs = evaluated
    assert flaw(record, inputs) == ""
    changed = copy.deepcopy(record)
    IMPOSSIBLE[name](changed)
    assert flaw(changed, inputs)


@pytest.mark.parametrize("place", [("result",), ("result", "classifier"), ("result", "classifier", "posterior")])
def test_trainings_that_no_task_leaves_are_found(board: Path, place: tuple[str, ...]) -> None:
    def change(records: AlteredRecords) -> None:
        put(*place, value=3)(next(record for record in records.values() if record["kind"] == "train"))

    edit(board, change)
    assert "an impossible record: train" in findings(board)[0]


@pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-Infinity"])
def test_numbers_that_are_not_finite_have_no_seal(board: Path, number: bytes) -> None:
    lines = gzip.decompress((board / "records.jsonl.gz").read_bytes()).splitlines()
    raw = re.sub(rb'"seconds":[0-9.]+,"versions"', b'"seconds":%b,"versions"' % number, lines[0])
    raw = raw[: raw.rindex(b',"sha256"')] + b"}"
    sealed = raw[:-1] + b',"sha256":"%b"}' % hashlib.sha256(raw).hexdigest().encode()
    (board / "records.jsonl.gz").write_bytes(gzip.compress(b"\n".join([sealed, *lines[1:]])))
    with pytest.raises(InputError, match=r"line 1 of .*: expected a sealed record"):
        check(board)


def test_records_of_other_inputs_are_found(board: Path) -> None:
    edit(board, lambda records: evaluation(records)["inputs"].update(draws=400))
    assert "a record whose inputs do not match its key: evaluate" in findings(board)[0]


def test_keys_of_another_spec_are_found(board: Path) -> None:
    text = (board / "spec.toml").read_text()
    (board / "spec.toml").write_text(text.replace("stages = [\n    4,", "stages = [\n    5,"))
    (found,) = findings(board)
    assert "a record of another spec, data set or version of a plugin" in found


def test_cells_without_a_record_are_missing_and_counted(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = read_board(board).plan.cells[-1].key
    edit(board, lambda records: records.pop(key))
    assert "a file does not match the records" in findings(board)[0]
    capsys.readouterr()
    assert main(["leaderboard", "build", str(board), "--out", str(tmp_path / "page")]) == 0
    assert "1 cell of the spec has no record" in capsys.readouterr().err
    assert main(["leaderboard", "check", str(board)]) == 0
    assert "ok: 13 of 14 cells of 2 defenses" in capsys.readouterr().out
    assert "13 of 14 cells" in (board / "README.md").read_text()
    assert "missing" in (board / "results.csv").read_text()
    assert "<html" in (tmp_path / "page" / "leaderboard.html").read_text()


@pytest.mark.parametrize("name", ["about.md", "references/x.json", "results.csv", "records.jsonl.gz"])
def test_links_are_refused_before_anything_is_read(board: Path, name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (board / name).parent.mkdir(exist_ok=True)
    (board / name).unlink(missing_ok=True)
    (board / name).symlink_to(secret)
    for act in (check, build, lambda folder: merge(folder, tmp_path / "none.zip")):
        with pytest.raises(InputError, match=f"expected only files and folders, got {Path(name).name}, a link"):
            act(board)


@pytest.mark.parametrize("name", ["references", "references/x.json", "README.md", "sub/../../x"])
def test_nothing_is_written_outside(board: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (board / name).parent.mkdir(exist_ok=True, parents=True)
    (board / name).unlink(missing_ok=True)
    (board / name).symlink_to(tmp_path / "outside")
    before = files(tmp_path)
    with pytest.raises(InputError, match="expected an ordinary file inside the board"):
        write_inside(board, f"{name}/new" if name == "references" else name, b"x")
    with pytest.raises(InputError, match="expected an ordinary file inside the board"):
        read_inside(board, f"{name}/new" if name == "references" else name)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "dataset", ["npz:{}/pipe", "npz:../pipe", "npz:/etc/passwd", "npz:pipe", "npz:link", "npz:x\\u0000"]
)
def test_the_data_that_a_board_names_are_read_from_the_data_root_alone(
    board: Path, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to(tmp_path / "board" / "spec.toml")
    text = (board / "spec.toml").read_text().replace('"digits"', f'"{dataset.format(tmp_path)}"')
    (board / "spec.toml").write_text(text)
    data = json.loads((board / "data.json").read_text())
    (board / "data.json").write_text(json.dumps({**data, "name": "npz"}))
    edit(board, lambda records: records.clear())
    capsys.readouterr()
    assert main(["leaderboard", "check", str(board)]) == 1  # its tables are others'; the data are not opened
    assert "error" not in capsys.readouterr().err
    found, problems = check(board)
    found = replace(found, records=Records({key: {} for key in found.cells}))
    with pytest.raises(
        InputError, match=r"data set 'npz:.* of the board: expected a file or folder below the data root"
    ):
        rerun(found, 1, Execution("memory://x", data_root=str(root), executor="inline"), problems, lambda *_: {})


@pytest.mark.parametrize("spot", ["defense", "library", "version"])
def test_nobody_is_invited_to_install_what_a_board_names(
    board: Path, spot: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(records: AlteredRecords) -> None:
        for record in records.values():
            record["versions"] = {"evil-dist": "1"}
            record["inputs"] = {**record["inputs"], "checkout": "evil-dist"}

    if spot == "defense":
        text = (board / "spec.toml").read_text().replace('"bnn"', '"evil_dist"').replace("set.bnn", "set.evil_dist")
        (board / "spec.toml").write_text(text)
    elif spot == "library":
        text = (board / "spec.toml").read_text().replace('"bnn"', '"evildist:x"')
        (board / "spec.toml").write_text(text)
    else:
        edit(board, change)
    capsys.readouterr()
    assert main(["leaderboard", "check", str(board)]) in (1, 2)
    assert "install evil" not in capsys.readouterr().err


def test_names_in_a_board_are_escaped_before_a_terminal_sees_them(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(records: AlteredRecords) -> None:
        record = evaluation(records)
        del records[record["key"]]
        records["\x1b[2J" + "k" * 60] = {**record, "kind": "\x1b]0;title\x07", "key": "\x1b[2J" + "k" * 60}

    edit(board, change)
    (board / "\x1b[31m.csv").write_text("x")
    capsys.readouterr()
    assert main(["leaderboard", "check", str(board)]) == 1
    err = capsys.readouterr().err
    assert r"\x1b]0;title\x07" in err
    assert all(line.isprintable() for line in err.splitlines())
    (board / "data.json").write_text((board / "data.json").read_text().replace('"digits"', '"\\u001b[2J"'))
    assert main(["leaderboard", "check", str(board)]) == 2
    assert capsys.readouterr().err[:-1].isprintable()


def test_a_pipe_hangs_nothing(board: Path) -> None:
    os.mkfifo(board / "about.md")
    with pytest.raises(InputError, match=r"got about\.md, a link or device"):
        check(board)


@pytest.mark.parametrize(("seeds", "radii", "most"), [(1001, 1, "1,000 seeds"), (1000, 126, "1,000,000 cells")])
def test_a_board_of_too_many_cells_is_refused_before_they_are_laid_out(
    board: Path, seeds: int, radii: int, most: str
) -> None:
    text = (board / "spec.toml").read_text()
    for name, values in (("seeds", range(seeds)), ("eps", [(index + 1) / 1000 for index in range(radii)])):
        text = re.sub(rf"(?m)^{name} = \[[^]]*\]", f"{name} = {list(values)}", text)
    (board / "spec.toml").write_text(text)
    with pytest.raises(InputError, match=f"spec.toml of .*: expected at most {most}"):
        check(board)


def test_a_run_or_report_does_not_write_into_a_board(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(board)
    for command in (["run", "--spec", str(board / "spec.toml"), "--out", str(board)], ["report", str(board)]):
        assert main(command) == 2
        assert "expected a folder that is not a board, got a folder with records.jsonl.gz" in capsys.readouterr().err
    assert files(board) == before


def test_what_is_no_board_is_one_line(tmp_path: Path, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "check", str(tmp_path / "none")]) == 2
    (board / "records.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    assert main(["leaderboard", "check", str(board)]) == 2
    (board / "records.jsonl.gz").unlink()
    assert main(["leaderboard", "check", str(board)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error"] * 3
    assert "leaderboard build --store STORE" in lines[2]


def test_cells_are_computed_anew(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--executor", "inline", "--rerun", "2", "--rerun-seed", "0"]
    assert main(["leaderboard", "check", str(board), *options]) == 0
    assert "2 cells recomputed, 2 of them equal to the last digit" in capsys.readouterr().out


def record_of(records: AlteredRecords, board: Path, defense: str, attack: str, eps: float) -> dict[str, Any]:
    wanted = (defense, defense, attack, eps)
    cells = [cell for cell in read_board(board).plan.cells if cell.attack]
    key = next(c.key for c in cells if (c.source.label, c.defense.label, c.attack and c.attack.label, c.eps) == wanted)
    return records[key]


FORGED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "an area": (
        ("detection", "total", "auroc"),
        0.9999,
        r"detection.total.auroc 0.9999 on the board, 0\.\d+ recomputed",
    ),
    "accepted errors": (("accepted_errors", "total"), 0.0, "accepted_errors.total 0.0000 on the board"),
    "a calibration error": (("calibration", "ece"), 0.0001, "calibration.ece 0.0001 on the board"),
    "a likelihood": (("calibration", "nll"), 0.0, "calibration.nll 0.0000 on the board"),
    "an interval": (("accuracy_interval",), [0.0, 1.0], "accuracy_interval.0 0.0000 on the board"),
    "passes": (("attack", "forward_passes"), 2000.0, "attack.forward_passes 2000.0000 on the board, 2.0000 recomputed"),
}


def test_a_consistent_forgery_is_found_by_computing_alone(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def better(records: AlteredRecords) -> None:
        weak, strong = (record_of(records, board, "erm", *each) for each in (("fgsm", 0.05), ("pgd", 0.15)))
        strong.update(copy.deepcopy({name: weak[name] for name in ("result", "artifact")}))
        attacked = record_of(records, board, "bnn", "pgd", 0.15)["result"]
        attacked["detection"]["total"]["auroc"] = 0.9999

    edit(board, better)
    build(board)
    assert findings(board) == []
    assert main(["leaderboard", "check", str(board), "--executor", "inline", "--rerun", "100"]) == 1
    assert "2 times: a recomputed cell differs from the board" in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("name", FORGED)
def test_every_number_of_a_recomputed_cell_counts(
    evaluated: tuple[dict[str, Any], Any], name: str, *, elsewhere: bool
) -> None:
    place, value, message = FORGED[name]
    record = evaluated[0]
    forged = copy.deepcopy(record)
    put("result", *place, value=value)(forged)
    if elsewhere:
        forged["artifact"] = "0" * 64
    found = Findings()
    assert not agree(forged, record, "cell", found)
    (line,) = found.lines()
    assert re.search(message, line)


def test_times_and_the_last_digits_of_another_machine_are_no_finding(evaluated: tuple[dict[str, Any], Any]) -> None:
    record = evaluated[0]
    found, other = Findings(), copy.deepcopy(record)
    put("result", "attack", "seconds", value=1e6)(other)
    assert agree(other, record, "cell", found)
    other["artifact"] = "0" * 64
    other["result"]["calibration"]["nll"] *= 1 + 1e-6
    assert not agree(other, record, "cell", found)
    assert not found


def test_a_build_without_a_store_drops_no_record_of_other_settings(board: Path) -> None:
    spec = board / "spec.toml"
    spec.write_text(spec.read_text().replace("0.15", "0.25"))
    before = files(board)
    with pytest.raises(
        InputError, match=r"got \d+ of another spec.*; name the store that has the others, with --store"
    ):
        build(board)
    assert files(board) == before


def test_committed_boards_hold() -> None:
    for spec in sorted((ROOT / "leaderboards").rglob("spec.toml")):
        board, found = check(spec.parent)
        assert list(found.lines()) == []
        assert board.missing == 0


# Submissions


def test_a_third_defense_joins_the_board(made: Path, board: Path) -> None:
    done = merge(board, made / "third.zip")
    assert isinstance(done, Merged)
    assert (done.label, done.own, done.transfers, done.others) == ("mc_dropout", (), 2 * 2 * 2, 0)
    joined, found = check(board)
    assert list(found.lines()) == []
    assert joined.spec.defenses == ("erm", "bnn", "mc_dropout")
    assert "mc_dropout" in (board / "README.md").read_text()
    # What a run of all three computes has the same keys and completes the board.
    run(made, "whole", "erm,bnn,mc_dropout")
    whole = build(board, Store(str(made / "store")))
    assert whole.missing == 0
    assert (board / "results.csv").read_bytes() == (made / "whole" / "results.csv").read_bytes()


def test_a_gap_of_a_submission_is_told_from_transfers_to_come(
    made: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = open_submission(made / "third.zip")
    left = next(cell for cell in theirs.plan.cells if cell.attack and cell.attack.label == "pgd" and cell.eps == 0.15)

    def without_one(members: dict[str, bytes]) -> None:
        records = {key: record for key, record in theirs.records.items() if key != left.key}
        members["records.jsonl.gz"] = Records(records).to_bytes()

    gapped = rewritten(made / "third.zip", tmp_path / "gapped.zip", without_one)
    assert main(["leaderboard", "merge", str(board), str(gapped)]) == 0
    found = capsys.readouterr().out
    assert "1 of its own cells is missing (pgd 0.15), so it has no rank; 8 transfers between it and others" in found
    assert findings(board) == []


def test_a_label_is_given_once_but_may_be_replaced(made: Path, board: Path) -> None:
    merge(board, made / "third.zip")
    before = files(board)
    with pytest.raises(InputError, match="'mc_dropout' is already on the board; replace it with --replace"):
        merge(board, made / "third.zip")
    assert files(board) == before
    merge(board, made / "third.zip", replacing=True)
    assert files(board) == before


def test_the_same_records_give_the_same_file(made: Path, tmp_path: Path) -> None:
    assert submit(made, "third", "mc_dropout", tmp_path / "again.zip") == 0
    assert (tmp_path / "again.zip").read_bytes() == (made / "third.zip").read_bytes()
    assert submit(made, "third", "mc_dropout", tmp_path / "again.zip") == 2
    assert submit(made, "third", "erm", tmp_path / "erm.zip") == 2
    assert submit(made, "third", "mc_dropout", tmp_path / "again.zip", "--force") == 0


def test_what_was_not_computed_is_not_submitted(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--store", str(tmp_path / "empty"), "--out", str(tmp_path / "x.zip")]
    assert main(["leaderboard", "submit", str(made / "third"), "--defense", "mc_dropout", *places]) == 1
    assert "times: not computed yet, first train mc_dropout, seed 0" in capsys.readouterr().err
    assert not (tmp_path / "x.zip").exists()


def rewritten(source: Path, path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


FORGERIES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "other members": (lambda members: members.update({"evil.py": b""}), "a file from 'advbench leaderboard submit'"),
    "a member less": (lambda members: members.pop("data.json"), "a file from 'advbench leaderboard submit'"),
    "other draws": (
        lambda members: members.update({"spec.toml": members["spec.toml"].replace(b"draws = 4", b"draws = 5")}),
        "a record of another spec",
    ),
    "other data": (
        lambda members: members.update({"data.json": members["data.json"].replace(b'"sha256": "', b'"sha256": "0')}),
        "data.json of",
    ),
    "a spec that is none": (lambda members: members.update({"spec.toml": b"\xff"}), "readable TOML"),
    "no records": (lambda members: members.update({"records.jsonl.gz": b"x"}), "a gzip file of records"),
}


def refusal(board: Path, path: Path) -> str:
    """What a merge says that adds nothing."""
    try:
        found = merge(board, path)
    except InputError as error:
        return str(error)
    assert isinstance(found, Findings)
    return "\n".join(found.lines())


@pytest.mark.parametrize("name", FORGERIES)
def test_a_submission_that_does_not_hold_adds_nothing(made: Path, board: Path, tmp_path: Path, name: str) -> None:
    change, said = FORGERIES[name]
    path = rewritten(made / "third.zip", tmp_path / "forged.zip", change)
    before = files(board)
    assert re.search(said, refusal(board, path))
    assert files(board) == before


def test_a_submission_under_other_settings_is_refused(made: Path, board: Path, tmp_path: Path) -> None:
    options = OPTIONS.replace("--draws 4", "--draws 3").split()
    places = ["--store", str(made / "store"), "--out", str(tmp_path / "other")]
    command = ["run", "--defense", "mc_dropout", *options, "--set", SETTINGS["mc_dropout"], *places]
    assert main(command) == 0
    packed = ["--store", str(made / "store"), "--out", str(tmp_path / "other.zip")]
    assert main(["leaderboard", "submit", str(tmp_path / "other"), "--defense", "mc_dropout", *packed]) == 0
    assert "setting 'draws' of the submission: expected the board's 4, got 3" in refusal(board, tmp_path / "other.zip")


def test_a_submission_that_unpacks_to_too_much_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("submission", "records"):
        monkeypatch.setattr(f"advbench.boards.{module}.LARGEST", 100)
        with pytest.raises(InputError, match="expected at most 100 bytes"):
            open_submission(made / "third.zip")
        monkeypatch.undo()


def _hold(board: Path, held: Event) -> None:
    os.environ["TMPDIR"] = str(board)
    with locked(board):
        held.set()
        time.sleep(600)


def test_all_who_change_a_board_wait_for_each_other_until_the_holder_dies(board: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_hold, args=(board, held))
    holder.start()
    assert held.wait(60)
    waiter = threading.Thread(target=build, args=(board,))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    holder.kill()
    holder.join()
    waiter.join(60)
    assert not waiter.is_alive()
    assert [path.name for path in board.parent.iterdir()] == [board.name]


def test_a_folder_that_cannot_be_locked_is_warned_of(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # as over NFS

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(StoreWarning, match="cannot lock .*: Bad file descriptor; do not run another build or merge"):
        build(board)


def _merge(board: Path, file: Path) -> None:
    assert main(["leaderboard", "merge", str(board), str(file)]) == 0


def test_two_merges_at_once_both_count(made: Path, board: Path) -> None:
    for attempt in range(5):
        copy = board.with_name(f"board-{attempt}")
        shutil.copytree(board, copy)
        context = multiprocessing.get_context("fork")
        both = [context.Process(target=_merge, args=(copy, made / f"{name}.zip")) for name in ("third", "fourth")]
        for each in both:
            each.start()
        for each in both:
            each.join()
        assert [each.exitcode for each in both] == [0, 0]
        joined, found = check(copy)
        assert list(found.lines()) == []
        assert set(joined.spec.defenses) == {"erm", "bnn", "mc_dropout", "bnn@again"}


def test_a_merge_that_fails_leaves_the_board_and_nothing_beside_it(
    made: Path, board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(board.parent)

    def full(one: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("advbench.boards.merge._exchange", full)
    with pytest.raises(StoreError, match="No space left on device"):
        merge(board, made / "third.zip")
    assert files(board.parent) == before


def test_what_a_killed_merge_left_is_swept_by_the_next(made: Path, board: Path) -> None:
    left = board.with_name(f".{board.name}.merge-abc")
    left.mkdir()
    (left / "results.csv").write_text("x")
    merge(board, made / "third.zip")
    assert [path.name for path in board.parent.iterdir()] == [board.name]


def test_a_board_is_not_replaced_under_whoever_works_in_it(
    made: Path, board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (board / "references").mkdir()
    for place, name in ((board, "."), (board / "references", "..")):
        monkeypatch.chdir(place)
        with pytest.raises(InputError, match=f"expected a folder outside the board.*; cd {board.parent}"):
            merge(Path(name), made / "third.zip")
    monkeypatch.chdir(board.parent)
    assert isinstance(merge(Path(f"./{board.name}/"), made / "third.zip"), Merged)


# What a submission may not do to the rest of the board


def submission(folder: Path, defense: str, *settings: str, attacks: str = "fgsm,pgd") -> Path:
    """A submission of one defense under the board's settings."""
    options = OPTIONS.replace("fgsm,pgd", attacks).split()
    places = ["--store", str(folder / "store"), "--out", str(folder / "run")]
    chosen = [part for setting in settings for part in ("--set", setting)]
    assert main(["run", "--defense", defense, *options, *chosen, *places]) == 0
    assert submit(folder, "run", defense, folder / "made.zip", "--force") == 0
    return folder / "made.zip"


def keys(board: Path) -> set[str]:
    return set(read_board(board).records)


def test_sources_other_than_the_board_s_are_refused(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advbench.grid.run.checkout_digest", lambda: "0123456789ab")
    monkeypatch.setattr("advbench.boards.board.checkout_digest", lambda: "0123456789ab")
    path = submission(tmp_path, "mc_dropout", SETTINGS["mc_dropout"])
    before = files(board)
    assert re.search(
        "sources that computed the submission: expected those of the board, .*0123456789ab", refusal(board, path)
    )
    assert files(board) == before


def test_a_build_says_why_it_takes_nothing_from_a_store(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(board)
    with pytest.warns(
        StoreWarning, match="no record was taken from store .*empty: it has no records of the board's spec"
    ):
        build(board, Store(str(tmp_path / "empty")))
    monkeypatch.setattr("advbench.grid.run.checkout_digest", lambda: "0123456789ab")
    monkeypatch.setattr("advbench.boards.board.checkout_digest", lambda: "0123456789ab")
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "run")]
    assert main(["run", "--spec", str(board / "spec.toml"), "--executor", "inline", *places]) == 0
    expected = "the board was computed by .*, this installation is a checkout with sources 0123456789ab, and keys"
    with pytest.warns(StoreWarning, match=expected):
        build(board, Store(str(tmp_path / "store")))
    assert files(board) == before


def test_a_record_that_the_board_has_stays(board: Path, tmp_path: Path) -> None:
    """Labels are not in keys: a defense of the same hyperparameters has the same records."""
    path = submission(tmp_path, "erm@evil", "erm@evil.stages=[3]")
    honest = keys(board)

    def forge(members: dict[str, bytes]) -> None:
        theirs = Records.from_bytes(members["records.jsonl.gz"], "theirs")
        records = {key: dict(theirs.read_record(key) or {}) for key in theirs}
        for record in records.values():
            if record["kind"] == "evaluate":
                record["result"]["calibration"]["ece"] = 0.0
        members["records.jsonl.gz"] = Records(records).to_bytes()

    before = files(board)
    forged = rewritten(path, tmp_path / "forged.zip", forge)
    assert "got different results under the same keys" in refusal(board, forged)
    assert files(board) == before
    assert isinstance(merge(board, path), Merged)
    assert honest <= keys(board)


def test_settings_of_others_stay_as_they_are(made: Path, tmp_path: Path) -> None:
    """A board whose `bnn` has its defaults: what starts from another `bnn` would make another of it."""
    board = tmp_path / "board"
    board.mkdir()
    run_dir = tmp_path / "first"
    settings = ["--set", "erm.stages=[3]", "--set", "wrm.stages=[1]", "--set", "wrm.init_from=erm"]
    places = ["--store", str(tmp_path / "store"), "--out", str(run_dir)]
    assert main(["run", "--defense", "erm,wrm", *OPTIONS.split(), *settings, *places]) == 0
    for name in ("spec.toml", "data.json"):
        shutil.copy(run_dir / name, board / name)
    build(board, Store(str(tmp_path / "store")))
    before = files(board)
    path = submission(tmp_path, "ifgsm_at", "ifgsm_at.stages=[1]", "ifgsm_at.init_from=erm", "erm.stages=[2]")
    assert "got other settings, weights or sources of erm, wrm" in refusal(board, path)
    # Nor is a defense replaced from which another one starts.
    path = submission(tmp_path, "erm", "erm.stages=[2]")
    with pytest.raises(InputError, match="got other settings, weights or sources of wrm"):
        merge(board, path, replacing=True)
    assert files(board) == before
    path = submission(tmp_path, "wrm", "wrm.stages=[2]", "wrm.init_from=erm", "erm.stages=[3]")
    done = merge(board, path, replacing=True)
    assert isinstance(done, Merged)
    assert done.transfers == 2 * 2  # what it and erm do to each other under pgd, whose examples are transferred


def test_attacks_that_the_board_lacks_are_left_out(board: Path, tmp_path: Path) -> None:
    path = submission(tmp_path, "mc_dropout", SETTINGS["mc_dropout"], "ifgsm.steps=2", attacks="fgsm,pgd,ifgsm")
    before = len(keys(board))
    done = merge(board, path)
    assert isinstance(done, Merged)
    assert done.records == 2 + 2 * 2  # its training, the clean images, and two attacks at two radii
    assert len(keys(board)) == before + done.records
    assert "ifgsm" not in (board / "spec.toml").read_text()


# The site


@pytest.fixture
def boards(made: Path, tmp_path: Path) -> Path:
    """A folder with two boards, one of them deeper and described by its makers."""
    shutil.copytree(made / "board", tmp_path / "boards/one")
    shutil.copytree(made / "board", tmp_path / "boards/more/two")
    (tmp_path / "boards/more/two/about.md").write_text("# Two\n\nThe `bnn` is first, e.g. at .1. It is small.\n")
    build(tmp_path / "boards/more/two")
    return tmp_path / "boards"


@in_browser
def test_a_site_of_two_boards_leads_to_pages_and_tables(boards: Path, tmp_path: Path) -> None:
    assert main(["leaderboard", "site", str(boards), "--out", str(tmp_path / "site")]) == 0
    written = files(tmp_path / "site")
    for at, folder in (("one", boards / "one"), ("more/two", boards / "more/two")):
        tables = {path.name: path.read_bytes() for path in (*folder.glob("*.csv"), folder / "spec.toml")}
        assert {name: written[f"{at}/{name}"] for name in tables} == tables
    with browsing() as browser:
        browser.open(tmp_path / "site/index.html", 390)
        one, two = sorted(browser.texts(".board"), key=lambda text: "The bnn is first" in text)
        assert "two: digits, small_cnn, linf, 2 defenses. The bnn is first, e.g. at .1." in two
        assert "It is small" not in two
        assert "digits, small_cnn, linf; 2 defenses; 14 of 14 planned cells" in one
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert violations(browser) == []
        links = browser.run("return [...document.links].map(link => link.href)")
        pages = {tmp_path / "site" / at / "index.html" for at in ("one", "more/two")}
        assert {Path(link.removeprefix("file://")) for link in links} == pages
        for link, at in (("h2 a", "one"), ("li a", "more/two")):
            browser.open(tmp_path / "site/index.html", 390)
            browser.click(link)
            assert browser.texts("h1") == [f"{at}: digits, small_cnn, linf"]
            assert browser.run("return document.querySelectorAll('#board tbody tr').length") == 2
            assert f"--spec leaderboards/{at}/spec.toml" in browser.texts("pre")[0]
            links = browser.run("return [...document.querySelectorAll('header a, .files a')].map(link => link.href)")
            beside = {tmp_path / "site" / name for name in written if name.startswith(f"{at}/")} - pages
            assert {Path(link.removeprefix("file://")) for link in links} == {tmp_path / "site/index.html", *beside}
        assert browser.complaints() == []


def test_boards_of_a_site_are_in_order_of_their_numbers(made: Path, tmp_path: Path) -> None:
    for name in ("draws10", "draws5", "figure2", "table1"):
        shutil.copytree(made / "board", tmp_path / "boards" / name)
    written = site_files(tmp_path / "boards", "")
    assert isinstance(written, dict)
    index = written["index.html"].decode()
    assert re.findall(r"<h2><a href=\"(\w+)/", index) == ["draws5", "draws10", "figure2", "table1"]


def test_a_bad_board_gives_one_line_and_no_site(
    boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["leaderboard", "site", str(boards), "--out", str(tmp_path / "site")]
    (boards / "more/two/results.csv").write_text("")
    capsys.readouterr()
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "board more/two: a file does not match the records: results.csv, line 1"
    (boards / "more/two/spec.toml").write_text("=")
    assert main(command) == 2
    assert main(["leaderboard", "site", str(boards / "none"), "--out", str(tmp_path / "site")]) == 2
    assert main(["leaderboard", "site", str(boards), "--out", str(boards / "site")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert not (tmp_path / "site").exists()
    assert not (boards / "site").exists()


# The workflows


def workflow(name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return found


def test_no_workflow_runs_code_with_write_rights() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        flow = workflow(path.name)
        assert flow["permissions"] == {"contents": "read"}
        assert "pull_request_target" not in path.read_text()
        for job in flow["jobs"].values():
            assert "permissions" not in job or not any("run" in step for step in job["steps"])


@pytest.mark.slow
def test_the_workflow_checks_a_submission(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "board", tmp_path / "base/leaderboards/small")
    shutil.copytree(made / "board", tmp_path / "proposed/leaderboards/small")
    file = tmp_path / "proposed/submissions/small/third.advbench.zip"
    file.parent.mkdir(parents=True)
    shutil.copy(made / "third.zip", file)
    scripts = [step.get("run", "") for step in workflow("submission.yml")["jobs"]["check"]["steps"]]
    program = f'advbench() {{ "{sys.executable}" -m advbench "$@"; }}\n'

    def outcome(script: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-e", "-c", program + script]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    there, merged, again = (outcome(script) for script in scripts if "advbench leaderboard" in script)
    assert "ok: 14 of 14 cells of 2 defenses" in there.stdout, there.stderr
    assert "ok: 19 of 27 cells of 3 defenses" in merged.stdout, merged.stderr
    assert "3 cells recomputed" in again.stdout, again.stderr


def _elsewhere(search: dict[str, Any]) -> None:
    search["settings"] = {name: 7 * value for name, value in search["settings"].items()}


def _not_doubled(search: dict[str, Any]) -> None:
    search["path"][1]["settings"] = dict.fromkeys(search["path"][1]["settings"], 3)


def _other_axis(search: dict[str, Any]) -> None:
    search["path"][1]["axis"] = "other"


@pytest.mark.parametrize("forge", [_elsewhere, _not_doubled, _other_axis], ids=lambda forge: forge.__name__.strip("_"))
def test_a_search_that_no_attack_made_is_a_finding(
    forge: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(ROOT / "leaderboards/mnist-converged", tmp_path / "board"))
    found = read_board(folder).records
    records = {key: copy.deepcopy(dict(found.read_record(key) or {})) for key in found}
    searched = (each for each in records.values() if each["result"].get("attack", {}).get("converge"))
    forge(next(searched)["result"]["attack"]["converge"])
    (folder / "records.jsonl.gz").write_bytes(Records(records).to_bytes())
    assert main(["leaderboard", "check", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().err

"""Submissions to a board: packed, merged, refused for every reason, and never half merged."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import pytest
import safetensors.numpy
from board_tools import files, pages_drawn_once

from advbench.boards import build, load_board, merge, staging
from advbench.boards.check import check
from advbench.cli.app import main
from advbench.evaluation import Predictions
from advbench.evaluation.summary import summary
from advbench.keys import content_key
from advbench.store.records import Store

pytestmark = pytest.mark.xdist_group("submissions")  # which share one fixture
OPTIONS = (
    "--attack fgsm,pgd --affinity fgsm,pgd --limit 40 --draws 4 --executor inline --device cpu "
    "--set pgd.steps=2 --set pgd.restarts=1"
).split()
SETTINGS = {"erm": "erm.stages=[3]", "bnn": "bnn.stages=[4]", "mc_dropout": "mc_dropout.stages=[3]"}


def run(folder: Path, out: str, defenses: str, *more: str) -> Path:
    settings = [part for name in defenses.split(",") for part in ("--set", SETTINGS[name])]
    places = ["--store", str(folder / "store"), "--out", str(folder / out)]
    assert main(["run", "--defense", defenses, *OPTIONS, "--eps", "0.05,0.15", *settings, *places, *more]) == 0
    return folder / out


@pytest.fixture(scope="module", autouse=True)
def _quick_pages() -> Iterator[None]:
    with pages_drawn_once():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a board of two defenses, a run of a third with its submission, and their store."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.html"):
        (run(folder, "board", "erm,bnn") / name).unlink()
    build(folder / "board")
    run(folder, "third", "mc_dropout")
    assert submit(folder, "third", "mc_dropout", folder / "third.zip") == 0
    return folder


def submit(folder: Path, run_dir: str, label: str, path: Path, *more: str) -> int:
    places = ["--store", str(folder / "store"), "--out", str(path)]
    return main(["leaderboard", "submit", str(folder / run_dir), "--defense", label, *places, *more])


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "board", tmp_path / "board"))


def refused(board: Path, path: Path, capsys: pytest.CaptureFixture[str], code: int = 1, *more: str) -> str:
    """What a refused merge says; nothing of the board has changed."""
    before = files(board)
    capsys.readouterr()
    assert main(["leaderboard", "merge", str(board), str(path), *more]) == code
    assert files(board) == before
    told = capsys.readouterr()
    assert told.out == ""
    assert code == 1 or len(told.err.splitlines()) == 1
    return told.err


# Submit


def test_a_submission_is_the_same_bytes_and_holds_no_more_than_it_says(made: Path, tmp_path: Path) -> None:
    assert submit(made, "third", "mc_dropout", tmp_path / "again.zip") == 0
    assert (tmp_path / "again.zip").read_bytes() == (made / "third.zip").read_bytes()
    with zipfile.ZipFile(made / "third.zip") as archive:
        assert archive.namelist() == ["spec.toml", "data.json", "records.tar"]
        with tarfile.open(fileobj=io.BytesIO(archive.read("records.tar"))) as tar:
            names = tar.getnames()
    evaluations = 5
    assert sum(name.startswith("artifacts/") for name in names) == evaluations
    assert sum(name.startswith("records/") for name in names) == evaluations + 4 + 1
    assert submit(made, "third", "mc_dropout", tmp_path / "models.zip", "--models") == 0
    assert (tmp_path / "models.zip").stat().st_size > (made / "third.zip").stat().st_size


def test_a_part_of_a_run_is_the_same_submission(made: Path, board: Path, tmp_path: Path) -> None:
    """The examples are crafted anew for the other defense, so the store then says of them how long that took."""
    shutil.copytree(made / "store", tmp_path / "store")
    run(tmp_path, "all", "erm,mc_dropout")
    assert submit(tmp_path, "all", "mc_dropout", tmp_path / "part.zip") == 0
    part, whole = parts(tmp_path / "part.zip"), parts(made / "third.zip")
    assert all(part[name] == whole[name] for name in ("spec.toml", "data.json"))
    assert main(["leaderboard", "merge", str(board), str(tmp_path / "part.zip")]) == 0


def test_what_is_not_there_cannot_be_submitted(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(made, "third", "erm", tmp_path / "x.zip") == 2
    assert "unknown defense of the run 'erm'" in capsys.readouterr().err
    assert submit(made, "absent", "erm", tmp_path / "x.zip") == 2
    assert submit(made, "third", "mc_dropout", made / "third.zip") == 2
    assert "is there already" in capsys.readouterr().err.splitlines()[-1]
    copy = Path(shutil.copytree(made / "store", tmp_path / "store"))
    frame = pd.read_csv(made / "third" / "results.csv")
    lost, gone = frame.key[1], frame.key[2]
    (copy / "records" / lost[:2] / f"{lost}.json").unlink()
    (copy / "artifacts" / gone[:2] / f"{gone}.safetensors").unlink()
    shutil.copytree(made / "third", tmp_path / "third")
    assert submit(tmp_path, "third", "mc_dropout", tmp_path / "x.zip") == 1
    told = capsys.readouterr().err
    assert "not computed yet: evaluate mc_dropout on fgsm 0.05" in told
    assert "the predictions are not in the store any more: evaluate mc_dropout on fgsm 0.15" in told
    assert not (tmp_path / "x.zip").exists()


# Merge


def test_a_third_defense_joins_the_board(made: Path, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_board(board).results
    assert main(["leaderboard", "merge", str(board), str(made / "third.zip")]) == 0
    assert capsys.readouterr().out.startswith("mc_dropout: 5 rows added, 16 with other defenses are missing")
    checked = check(board)
    assert list(checked.findings.lines()) == []
    merged = checked.board.results
    assert list(checked.board.report.leaderboard.defense.sort_values()) == ["bnn", "erm", "mc_dropout"]
    third = load_board(made / "third").results
    columns = ["defense", "source", "attack", "eps", "accuracy", "accuracy_low", "key", "flags"]
    for part in (before, third):
        known = merged.merge(part[columns], on=columns)
        assert len(known) == len(part)
    missing = merged[merged.accuracy.isna()]
    assert set(missing["flags"]) == {"missing"}
    assert (missing.key.str.len() == 64).all()
    # What a run of all three would compute has the same keys.
    whole = load_board(run(made, "whole", "erm,bnn,mc_dropout"))
    assert list(whole.results.key) == list(merged.key)
    assert len(checked.board.report.models) == 3
    assert "mc_dropout" in (board / "index.html").read_text()
    # Put in its own place, what others made of it keeps its intervals.
    before = (made / "whole" / "affinity.csv").read_bytes()
    build(made / "whole")
    assert main(["leaderboard", "merge", str(made / "whole"), str(made / "third.zip"), "--replace"]) == 0
    assert (made / "whole" / "affinity.csv").read_bytes() == before


def test_a_label_is_given_once_but_may_be_replaced(
    made: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", "merge", str(board), str(made / "third.zip")]) == 0
    once = files(board)
    told = refused(board, made / "third.zip", capsys)
    assert "the board has a defense of that label already: mc_dropout" in told
    assert main(["leaderboard", "merge", str(board), str(made / "third.zip"), "--replace"]) == 0
    assert files(board) == once
    # With other hyperparameters: what others made of the old one is missing.
    run(tmp_path, "other", "erm", "--set", "erm.stages=[2]")
    assert submit(tmp_path, "other", "erm", tmp_path / "other.zip") == 0
    assert main(["leaderboard", "merge", str(board), str(tmp_path / "other.zip"), "--replace"]) == 0
    checked = check(board)
    assert list(checked.findings.lines()) == []
    assert checked.board.spec.set["erm"] == {"stages": [2]}
    rows = checked.board.results
    assert rows[(rows.source == "bnn") & (rows.defense == "erm")].accuracy.isna().all()
    assert rows[(rows.source == "erm") & (rows.defense == "erm")].accuracy.notna().all()


def test_a_board_of_spec_and_results_alone_can_grow(made: Path, board: Path) -> None:
    for path in board.iterdir():
        if path.name not in ("spec.toml", "results.csv"):
            path.unlink()
    build(board)
    assert main(["leaderboard", "merge", str(board), str(made / "third.zip")]) == 0
    assert list(check(board).findings.lines()) == []
    assert {path.name for path in board.iterdir()} == {
        "spec.toml",
        "results.csv",
        "data.json",
        "README.md",
        "index.html",
    }


def test_a_merge_that_was_killed_goes_on(
    made: Path, board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(board)
    whole = Path(shutil.copytree(board, board.with_name("whole")))
    arguments = ["leaderboard", "merge", str(board), str(made / "third.zip")]
    assert main(["leaderboard", "merge", str(whole), str(made / "third.zip")]) == 0

    class KilledError(BaseException):
        """As a kill would end it."""

    real_write, real_replace = staging.write_file, Path.replace

    def dies_writing(path: Path, raw: bytes) -> None:
        if "models.csv" in path.name:
            raise KilledError
        real_write(path, raw)

    monkeypatch.setattr(staging, "write_file", dies_writing)
    with pytest.raises(KilledError):
        merge.merge(board, made / "third.zip")
    monkeypatch.setattr(staging, "write_file", real_write)
    assert {name: raw for name, raw in files(board).items() if not name.startswith(".")} == before
    assert list(check(board).findings.lines()) == []

    def dies_renaming(self: Path, target: Path) -> Path:
        if Path(target) == board / "models.csv":
            raise KilledError
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", dies_renaming)
    with pytest.raises(KilledError):
        merge.merge(board, made / "third.zip")
    monkeypatch.setattr(Path, "replace", real_replace)
    assert any("a change of this board was cut off" in line for line in check(board).findings.lines())
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("a merge that was cut off is finished: mc_dropout: 5 rows added")
    assert files(board) == files(whole)


# Refused


def parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


Members = dict[str, bytes]


def repacked(raw: bytes, change: Callable[[Members], Members | None]) -> bytes:
    """The records' tar with some of its files changed."""
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = {item.name: (tar.extractfile(item) or io.BytesIO()).read() for item in tar}
    members = change(members) or members
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return into.getvalue()


def resealed(members: Members, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record and give it the digest that it then should have."""
    record = json.loads(members[name])
    change(record)
    record.pop("sha256")
    members[name] = json.dumps({**record, "sha256": content_key(record)}).encode()


def evaluation(members: Members) -> str:
    """The name of the record of an attacked evaluation."""
    return next(
        name
        for name, raw in sorted(members.items())
        if name.startswith("records/") and "detection" in json.loads(raw)["result"]
    )


def tamper_with_a_record(members: Members) -> None:
    name = evaluation(members)
    members[name] = re.sub(rb'"accuracy": ?0\.', b'"accuracy":0.9', members[name], count=1)


def forge_a_record(members: Members) -> None:
    resealed(members, evaluation(members), lambda record: record["result"].update(accuracy=1.0))


def forge_a_cost(members: Members) -> None:
    resealed(members, evaluation(members), lambda record: record["result"]["attack"].update(forward_passes=99.0))


def forge_a_version(members: Members) -> None:
    for name in [name for name in members if name.startswith("records/")]:
        resealed(members, name, lambda record: record["versions"].update(torch="1.0.0"))


def forge_a_device(members: Members) -> None:
    resealed(members, evaluation(members), lambda record: record["versions"].update(device="<script>"))


def forge_an_input(members: Members) -> None:
    resealed(members, evaluation(members), lambda record: record["inputs"].update(draws=3))


def forge_predictions(members: Members, change: Callable[[dict[str, Any]], object]) -> None:
    name = evaluation(members)
    artifact = name.replace("records/", "artifacts/").replace(".json", ".safetensors")
    arrays = safetensors.numpy.load(members[artifact])
    change(arrays)
    members[artifact] = safetensors.numpy.save(arrays)
    resealed(members, name, lambda r: r.update(artifact=hashlib.sha256(members[artifact]).hexdigest()))


def forge_labels(members: Members) -> None:
    forge_predictions(members, lambda arrays: arrays.update(labels=arrays["mean_probs"].argmax(1)))


def forge_votes(members: Members) -> None:
    forge_predictions(members, lambda arrays: arrays.update(votes=arrays["votes"] * 2))


def forge_means(members: Members) -> None:
    """One-hot at the labels, and all that follows from them; the votes stay."""

    def change(arrays: dict[str, Any]) -> None:
        images, classes = arrays["mean_probs"].shape
        one_hot = numpy.eye(classes, dtype="float32")[arrays["labels"]]
        sure = {"resampled_share": numpy.ones(images), "resampled_accuracy": numpy.ones(200)}
        arrays.update(mean_probs=one_hot, **sure)
        members["forged"] = safetensors.numpy.save(arrays)

    forge_predictions(members, change)
    forged = Predictions(**safetensors.numpy.load(members.pop("forged")))
    resealed(members, evaluation(members), lambda record: record["result"].update(summary(forged)))


def forge_types(members: Members) -> None:
    forge_predictions(members, lambda arrays: arrays.update(correct=arrays["correct"].astype("float32")))


def forge_shapes(members: Members) -> None:
    forge_predictions(members, lambda arrays: arrays.update(mean_probs=arrays["mean_probs"][:, :1]))


def forge_names(members: Members) -> None:
    forge_predictions(members, lambda arrays: arrays.update(more=arrays["votes"]))


def tamper_with_predictions(members: Members) -> None:
    name = next(name for name in members if name.startswith("artifacts/"))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def leave_out_predictions(members: Members) -> None:
    del members[next(name for name in members if name.startswith("artifacts/"))]


def leave_out_a_record(members: Members) -> None:
    name = evaluation(members)
    del members[name]
    del members[name.replace("records/", "artifacts/").replace(".json", ".safetensors")]


def add_a_stranger(members: Members) -> None:
    record = {"key": "ab" * 32, "schema": json.loads(members[evaluation(members)])["schema"], "kind": "train"}
    members[f"records/ab/{'ab' * 32}.json"] = json.dumps({**record, "sha256": content_key(record)}).encode()


TAMPERED: dict[str, tuple[Callable[[Members], None], int, str]] = {
    "a record": (tamper_with_a_record, 2, "a damaged records/"),
    "a record and its digest": (forge_a_record, 1, "a record is not what its stored predictions give"),
    "a cost": (forge_a_cost, 1, "what an attack cost is not what its own record says"),
    "versions": (forge_a_version, 1, "a record was made by torch 1.0.0, the board by"),
    "a device": (forge_a_device, 1, "a record states no version of device"),
    "inputs": (forge_an_input, 1, "a record is of another task than its key says"),
    "labels": (forge_labels, 1, "stored predictions are none"),
    "votes": (forge_votes, 1, "stored predictions are none"),
    "shapes": (forge_shapes, 1, "stored predictions are none"),
    "types": (forge_types, 1, "correct of type float32"),
    "means": (forge_means, 1, "mean_probs and votes, mean_entropy"),
    "names": (forge_names, 1, "stored predictions are none"),
    "predictions": (tamper_with_predictions, 2, "no record in it vouches"),
    "no predictions": (leave_out_predictions, 1, "stored predictions are none"),
    "no record": (leave_out_a_record, 1, "a record is not there"),
    "a stranger's record": (add_a_stranger, 1, "a record that the spec does not lead to"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused(
    made: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    change, code, problem = TAMPERED[what]
    members = parts(made / "third.zip")
    members["records.tar"] = repacked(members["records.tar"], change)
    assert problem in refused(board, packed(tmp_path / "bad.zip", members), capsys, code)


def test_an_honest_file_that_is_packed_anew_is_merged(made: Path, board: Path, tmp_path: Path) -> None:
    members = parts(made / "third.zip")
    members["records.tar"] = repacked(members["records.tar"], lambda _: None)
    assert main(["leaderboard", "merge", str(board), str(packed(tmp_path / "good.zip", members))]) == 0


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"eps = [0.05, 0.15]", b"eps = [0.05, 0.2]", "setting 'eps' is not the board's"),
        (b"draws = 4", b"draws = 8", "setting 'draws' is not the board's"),
        (b"limit = 40", b"limit = 30", "setting 'limit' is not the board's"),
        (b"seeds = [0]", b"seeds = [1]", "setting 'seeds' is not the board's"),
        (b"threads = 1", b"threads = 2", "setting 'threads' is not the board's"),
        (b'norm = "linf"', b'norm = "l2"', "setting 'norm' is not the board's"),
        (b'"steps" = 2', b'"steps" = 1', "an attack has other hyperparameters than the board's: pgd"),
        (b'"stages" = [3]', b'"stages" = [2]', "a record is not there, or was made by another version"),
        (b'"mc_dropout"', b'"bnn"', "the board has a defense of that label already: bnn"),
    ],
)
def test_other_settings_are_refused(
    made: Path,
    board: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: bytes,
    new: bytes,
    problem: str,
) -> None:
    members = parts(made / "third.zip")
    assert old in members["spec.toml"]
    members["spec.toml"] = members["spec.toml"].replace(old, new)
    assert problem in refused(board, packed(tmp_path / "bad.zip", members), capsys)


def test_other_data_is_refused(made: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = parts(made / "third.zip")
    said = json.loads(members["data.json"])
    members["data.json"] = json.dumps({**said, "sha256": "0" * 64}).encode()
    assert "the data is not the board's" in refused(board, packed(tmp_path / "bad.zip", members), capsys)


def test_a_board_that_is_not_sound_takes_nothing(made: Path, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (board / "README.md").write_text("Nothing.\n")
    assert "the board itself is not sound" in refused(board, made / "third.zip", capsys)


def malformed(good: Members) -> dict[str, bytes | dict[str, bytes]]:
    bomb = {**good, "records.tar": b"\0" * 2**25}
    return {
        "no zip": b"PK\x03\x04 nothing",
        "empty": b"",
        "extra member": {**good, "notes.txt": b"hello"},
        "missing member": {name: raw for name, raw in good.items() if name != "data.json"},
        "a path": {**{name: raw for name, raw in good.items() if name != "data.json"}, "../data.json": b"{}"},
        "an absolute path": {**{n: raw for n, raw in good.items() if n != "data.json"}, "/tmp/data.json": b"{}"},
        "a zip bomb": bomb,
        "a large spec": {**good, "spec.toml": bytes(range(256)) * 2**13},
        "a spec that is none": {**good, "spec.toml": b"\xff"},
        "a spec of two": {**good, "spec.toml": good["spec.toml"].replace(b'["mc_dropout"]', b'["mc_dropout", "erm"]')},
        "an unknown defense": {**good, "spec.toml": good["spec.toml"].replace(b"mc_dropout", b"mc_droput")},
        "data that is none": {**good, "data.json": b"[]"},
        "records that are none": {**good, "records.tar": b"nothing"},
        "a link among the records": {**good, "records.tar": _with_a_link()},
    }


def _with_a_link() -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=tarfile.GNU_FORMAT) as tar:
        item = tarfile.TarInfo(f"records/ab/{'ab' * 32}.json")
        item.type, item.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(item)
    return into.getvalue()


def test_a_malformed_file_is_refused_in_one_line(
    made: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = parts(made / "third.zip")
    path = tmp_path / "bad.zip"
    for what, content in malformed(good).items():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            packed(path, content)
        told = refused(board, path, capsys, 2)
        assert told.startswith("error: "), what
    assert "No such file" in refused(board, tmp_path / "absent.zip", capsys, 2)
    packed(path, good, zipfile.ZIP_BZIP2)
    assert "packed in another way" in refused(board, path, capsys, 2)
    assert not (tmp_path / "data.json").exists()


def test_a_size_that_is_a_lie_is_refused(
    made: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A member that says it is short and unpacks to far more is cut off at what it says."""
    path = packed(tmp_path / "bad.zip", {**parts(made / "third.zip"), "data.json": b" " * 2**22})
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = raw.index(b"data.json", raw.index(signature)) - (30 if offset == 22 else 46)
        struct.pack_into("<I", raw, start + offset, 64)
    path.write_bytes(bytes(raw))
    assert "expected a submission" in refused(board, path, capsys, 2)


def test_records_reach_no_other_store(made: Path, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "merge", str(board), str(made / "third.zip")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board"]
    assert Store(str(tmp_path / "none")).storage.names("records") == []

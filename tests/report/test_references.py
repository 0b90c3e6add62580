"""Models that others evaluated, read from RobustBench's files and written as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reports import made_report

from advbench.errors import InputError
from advbench.grid.spec import make_spec
from advbench.report import Report
from advbench.report.references import model_info, read_references, write_model_infos

# As RobustBench has them, but for the words.
MODEL = {
    "link": "https://arxiv.org/abs/0000.00000",
    "name": "A title",
    "authors": "A. Author, B. Author",
    "additional_data": True,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "GitHub,<br>Sep 2019",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "89.69",
    "reported": "62.5",
    "autoattack_acc": "59.53",
    "unreliable": False,
}


def write(folder: Path, place: str = "cifar10/Linf/Author2019Title.json", **changes: object) -> Path:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in (MODEL | changes).items() if value is not ...}
    path.write_text(json.dumps(values))
    return path


def test_a_model_file_is_read(tmp_path: Path) -> None:
    (found,) = read_references([write(tmp_path)])
    assert (found.model, found.dataset, found.norm, found.eps) == ("Author2019Title", "cifar10", "linf", 8 / 255)
    assert (found.clean_acc, found.robust, found.evaluated_by) == (0.8969, 0.5953, "AutoAttack")
    assert (found.venue, found.number_forward_passes, found.additional_data) == ("GitHub, Sep 2019", 1, True)


@pytest.mark.parametrize(
    ("changes", "robust", "evaluated_by"),
    [
        ({"external": "58.22"}, 0.5822, "external evaluation"),
        ({"autoattack_acc": ...}, 0.625, "its authors"),
        ({"autoattack_acc": ..., "reported": "", "corruptions_acc": "92.78"}, 0.9278, "common corruptions"),
        ({"autoattack_acc": ..., "reported": None}, None, ""),
        ({"autoattack_acc": 59.53}, 0.5953, "AutoAttack"),
    ],
)
def test_the_strongest_evaluation_counts(
    tmp_path: Path, changes: dict[str, object], robust: float | None, evaluated_by: str
) -> None:
    (found,) = read_references([write(tmp_path, **changes)])
    assert (found.robust, found.evaluated_by) == (robust, evaluated_by)


def test_folders_are_read_through_and_say_the_norm(tmp_path: Path) -> None:
    for name in ("cifar10/Linf/B.json", "cifar10/L2/A.json", "cifar10/corruptions/C.json", "D.json"):
        write(tmp_path, name, eps=None)
    found = read_references([tmp_path])
    assert [(one.model, one.norm, one.eps) for one in found] == [
        ("D", "", None),
        ("A", "l2", None),
        ("B", "linf", None),
        ("C", "corruptions", None),
    ]


def test_a_link_that_is_none_is_dropped(tmp_path: Path) -> None:
    (found,) = read_references([write(tmp_path, link="javascript:alert(1)")])
    assert found.link == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"clean_acc": "ninety"}, "valid number under 'clean_acc', got 'ninety'"),
        ({"autoattack_acc": "101"}, "less than or equal to 100 under 'autoattack_acc', got 101"),
        ({"clean_acc": True}, "valid number under 'clean_acc'"),
        ({"eps": "8/0"}, "number under 'eps', got '8/0'"),
        ({"eps": "1e999"}, "finite number under 'eps'"),
        ({"eps": "-0.1"}, "greater than or equal to 0 under 'eps'"),
        ({"dataset": ...}, "field required under 'dataset'"),
        ({"name": 3}, "string under 'name', got 3"),
    ],
)
def test_what_is_no_model_file_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as refused:
        read_references([write(tmp_path, **changes)])
    assert "Author2019Title.json" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"bad\.json"):
        read_references([path])


def test_paths_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of RobustBench's model files"):
        read_references([tmp_path])
    with pytest.raises(InputError, match="No such file"):
        read_references([tmp_path / "absent.json"])


@pytest.fixture(scope="module")
def report() -> Report:
    return made_report()


def info_of(report: Report, defense: str, **spec: object) -> dict[str, Any]:
    (standing,) = (one for one in report.standings if one.defense == defense)
    return model_info(report, standing, make_spec({"defenses": ["adv_bnn"], "attacks": ["pgd"]} | spec))


def test_a_defense_is_described_as_robustbench_does(report: Report) -> None:
    info = info_of(report, "adv_bnn", limit=200)
    # 0.9 - 0.25 * (1 + 1/2 + 0) under the last attack at the largest eps.
    assert (info["clean_acc"], info["external"], info["eps"]) == ("90.00", "52.50", "0.05")
    assert (info["name"], info["venue"], info["link"]) == ("A title", "2020", "https://example.org/a")
    assert "autoattack_acc" not in info
    assert info["number_forward_passes"] == 20
    assert "advbench's attack pgd, linf eps 0.05, 95 % interval [47.50, 57.50] %" in info["footnote"]
    assert "200 of the test images, ensemble of 20 draws" in info["footnote"]
    # The area of two radii is the mean: 0.9 - 0.25 * (3/4 + 1/2).
    assert "over eps 8/255, 0.05: 58.75 %, 95 % interval [53.75, 63.75] %." in info["footnote"]
    assert "Rank 1 of 2, possible ranks 1 to 2." in info["footnote"]
    assert not info["unreliable"]
    assert set(MODEL) - {"autoattack_acc"} <= set(info)


def test_an_upper_bound_stays_a_number_and_is_said_to_be_one(report: Report) -> None:
    flags = np.where(report.results.defense == "adv_bnn", "unconverged", report.results["flags"])
    info = info_of(replace(report, results=report.results.assign(flags=flags)), "adv_bnn")
    assert float(info["external"]) == 52.5
    assert "20 draws, an upper bound (an attack did not converge)." in info["footnote"]
    assert "at most 58.75 %" in info["footnote"]
    assert (info["unreliable"], "Flags: unconverged." in info["footnote"]) == (True, True)


def test_what_misleads_attacks_has_no_rank(report: Report) -> None:
    flags = np.where(report.results.defense == "adv_bnn", "misleads_attacks", report.results["flags"])
    info = info_of(replace(report, results=report.results.assign(flags=flags)), "adv_bnn")
    assert "No rank: checks found that it misleads attacks" in info["footnote"]
    assert info["unreliable"]


def test_what_autoattack_left_has_its_own_field(report: Report) -> None:
    named = report.methods.assign(name=report.methods.name.replace("fgsm", "autoattack"))
    info = info_of(replace(report, methods=named), "adv_bnn")
    # 0.9 - 0.25 * (1 + 0 + 0) under the first attack.
    assert (info["autoattack_acc"], info["external"]) == ("65.00", "52.50")


def test_of_a_method_without_a_paper_the_label_stands_as_its_name(report: Report) -> None:
    info = info_of(replace(report, methods=report.methods.assign(title="")), "adv_bnn")
    assert (info["name"], info["authors"], info["venue"], info["link"]) == ("adv_bnn", "", "Unpublished", "")


def test_defenses_are_written_where_robustbench_looks_and_read_back(report: Report, tmp_path: Path) -> None:
    written = write_model_infos(report, None, tmp_path)
    # An accuracy of erm's is missing.
    assert list(written) == ["adv_bnn", "pgd_at"]
    assert written["pgd_at"] == tmp_path / "digits" / "Linf" / "pgd_at.json"
    back = {one.model: one for one in read_references([tmp_path])}
    board = report.leaderboard.set_index("defense")
    assert back["pgd_at"].robust == pytest.approx(board.worst["pgd_at"], abs=5e-5)
    assert (back["pgd_at"].norm, back["pgd_at"].evaluated_by) == ("linf", "external evaluation")


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    names = ("../../outside", "a/b", "a_b")
    written = write_model_infos(made_report([*names, "failed"]), None, tmp_path)
    assert {path.parent for path in written.values()} == {tmp_path / "digits" / "Linf"}
    assert len({path.name for path in written.values()}) == 3


def test_a_board_without_a_complete_defense_is_refused(tmp_path: Path) -> None:
    failed = made_report(["erm"])
    assert pd.isna(failed.leaderboard.worst[0])
    with pytest.raises(InputError, match="model files"):
        write_model_infos(failed, None, tmp_path)

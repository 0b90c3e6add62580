"""A run's report in every format, from the command line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import Cli
from reports import made_report

from advbench.errors import InputError
from advbench.grid.run import prepare_anew
from advbench.grid.spec import make_spec, parse_toml
from advbench.report import Report
from advbench.report.markdown import escape_latex, render, render_latex
from advbench.report.output import FORMATS, check_formats, collect_anew, contents
from advbench.store.records import Store

HOSTILE = "a<b>&%$#_{}~^\\|"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, with its store beside it."""
    from advbench.cli.app import main

    top = tmp_path_factory.mktemp("run")
    settings = ["--set", "erm.stages=[1]", "--set", "bnn.stages=[1]", "--limit", "40", "--draws", "4"]
    places = ["--store", str(top / "store"), "--out", str(top / "results"), "--executor", "inline"]
    code = main(["run", "--defense", "erm,bnn", "--attack", "cw_one_step", "--eps", "0.1,0.2", *settings, *places])
    assert code == 0
    return top / "results"


@pytest.fixture
def report(folder: Path) -> Report:
    plan = prepare_anew(make_spec(parse_toml(folder / "spec.toml")), folder)
    return collect_anew(plan, Store(str(folder.parent / "store")))


def renamed(report: Report, name: str) -> Report:
    """The report with another name in place of a defense's."""
    results = report.results.replace({"defense": {"erm": name}, "source": {"erm": name}})
    return dataclasses.replace(report, results=results, methods=report.methods.replace({"label": {"erm": name}}))


def test_every_format_gives_the_same_bytes_twice(report: Report) -> None:
    first, second = (dict(contents(report, FORMATS)) for _ in range(2))
    assert first == second
    assert {Path(name).suffix for name in first} == {".csv", ".md", ".html", ".tex", ".svg", ".pdf", ".png"}
    assert {"figures/security-cw_one_step.svg", "figures/retention-cw_one_step.pdf"} <= set(first)
    assert {"figures/uncertainty-cw_one_step.png", "figures/affinity-cw_one_step.svg"} <= set(first)
    assert all(len(raw) > 50 for raw in first.values())


def test_formats_are_written_on_demand(folder: Path, cli: Cli) -> None:
    store = str(folder.parent / "store")
    before = {path.name for path in folder.iterdir()}
    assert {"leaderboard.html", "leaderboard.md", "uncertainty.csv", "histograms.csv", "models.csv"} <= before
    done = cli("report", str(folder), "--store", store, "--format", "latex,svg")
    assert done.returncode == 0, done.stderr
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - before
    assert "leaderboard.tex" in made
    assert all(name.endswith((".tex", ".svg")) for name in made)
    assert all(name in done.stdout for name in made)


@pytest.mark.parametrize("arguments", [["--format", "svgg"], ["--reference", "nowhere.json"]])
def test_bad_input_is_one_line_and_writes_nothing(folder: Path, cli: Cli, arguments: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = cli("report", str(folder), "--store", str(folder.parent / "store"), *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_unknown_format_is_answered_with_what_was_meant() -> None:
    with pytest.raises(InputError, match="did you mean 'latex'"):
        check_formats(["latx"])


def test_latex_has_a_row_a_defense_and_balanced_braces(report: Report) -> None:
    text = render_latex(report)
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 + 2
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    assert all(row.count(" & ") == len(columns.group(1)) - 1 for row in rows)
    assert all(rule in text for rule in ("\\toprule", "\\midrule", "\\bottomrule"))
    assert "cw\\_one\\_step" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_latex_escapes_every_name(report: Report) -> None:
    text = render_latex(renamed(report, HOSTILE))
    assert escape_latex(HOSTILE) in text
    assert HOSTILE not in text
    assert escape_latex(HOSTILE) == (
        r"a\textless{}b\textgreater{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textbar{}"
    )


def test_what_is_not_computed_yet_is_missing_and_not_failed() -> None:
    report = made_report()
    assert "| failed " in render(report)
    waiting = report.results["flags"].str.replace(r"^failed.*", "missing", regex=True)
    text = render(dataclasses.replace(report, results=report.results.assign(flags=waiting)))
    assert "failed" not in text
    assert "| missing " in text
    assert " cells missing" in text

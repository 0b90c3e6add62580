"""Studies of papers: every published number has its cell, verdicts are right, and one runs from end to end."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import install
from scipy import stats

import advbench
from advbench.boards.board import read_board
from advbench.boards.comparison import (
    COLUMNS,
    FOOLED,
    HISTORY,
    SPREAD,
    Comparison,
    Order,
    _area_interval,
    _by_seed,
    _difference,
    _of_histories,
    _order,
    _own,
    _paired,
    _verdict,
    compare,
    read_measured,
)
from advbench.boards.studies import Cell, Item, Published, Study, StudyFile, all_items, find_item, read_study
from advbench.cli.app import main
from advbench.data.ood import ood_labels
from advbench.errors import InputError
from advbench.evaluation import auroc_interval
from advbench.evaluation.predictions import wilson
from advbench.evaluation.uncertainty import Detection, Uncertainty, detection
from advbench.grid.spec import make_spec
from advbench.registry import registry
from advbench.report.leaderboard import Measured
from advbench.report.tables import COLUMNS as TABLES
from advbench.training.history import DETECTORS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "leaderboards" / "papers"
OURS = {entry.name for entry in registry().entries("paper") if entry.distribution == "advbench"}
ITEMS = {item.title: item for item in all_items() if item.paper in OURS}
STUDIES = [(title, scale) for title, item in ITEMS.items() for scale in item.scales]
Capture = pytest.CaptureFixture[str]


# What the papers print


def test_all_printed_numbers_are_there_once() -> None:
    counts = {title: len(read_study(item, "paper").published) for title, item in ITEMS.items()}
    by_paper = Counter[str]()
    for title, count in counts.items():
        by_paper[title.partition("/")[0]] += count
    assert by_paper == {"adversarial_sampling": 120, "adv_bnn": 30, "hierarchical_vi": 72, "apd": 131, "bal": 44}
    deviations = 0
    for title, item in ITEMS.items():
        places = [(each.place, each.cell) for each in read_study(item, "paper").published]
        assert len(set(places)) == len(places), title
        if (item.folder / "published.csv").is_file():
            with (item.folder / "published.csv").open(newline="") as file:
                deviations += sum(bool(row["deviation"]) for row in csv.DictReader(file))
    assert deviations == 120


@pytest.mark.parametrize("title", ITEMS)
def test_every_number_and_claim_has_a_cell_or_a_reason(title: str) -> None:
    item = ITEMS[title]
    study = read_study(item, "paper")
    assert study.published or study.file.claims or item.missing, "nothing to compare"
    assert bool(study.parts) != bool(item.missing)
    cells = []
    for each in study.published:
        assert (each.cell is None) == bool(each.reason), each
        cells += [each.cell] if each.cell else []
    cells += [cell for claim in study.file.claims for pair in claim.pairs() for cell in pair if cell]
    known = {"affinity", SPREAD, *(f"retained_{share}" for share in (20, 40, 60, 80))}
    known |= {*TABLES["results"], *TABLES["uncertainty"], *TABLES["models"]}
    scores = [
        f"{name}_{measure}" for name in Detection._fields for measure in (*Uncertainty._fields, "least_confidence")
    ]
    known |= {f"{about}{score}" for about in ("", FOOLED) for score in scores}
    for cell in cells if study.parts else []:
        spec = study.parts[cell.part]
        if spec.history:
            shown = [f"auroc_{name}:{label}" for name in DETECTORS for label in ood_labels(spec.ood)]
            measures = ["error", "draw_error", "draw_error_min", "draw_error_max", *shown]
            known |= {f"{HISTORY}{how}_{measure}" for how in ("mean", "oscillation") for measure in measures}
        assert {cell.defense, cell.source or cell.defense} <= set(spec.defenses), cell
        attacks = {"none", *spec.attacks, *(f"ood:{label}" for label in ood_labels(spec.ood))}
        assert cell.attack in attacks, cell
        assert cell.eps in ((0.0,) if cell.attack == "none" or cell.attack.startswith("ood:") else spec.eps), cell
        assert cell.number in known, cell


@pytest.mark.parametrize(("title", "scale"), STUDIES)
def test_a_study_says_what_it_cuts(title: str, scale: str) -> None:
    study = read_study(ITEMS[title], scale)
    assert bool(study.file.cuts) == bool(study.file.forbids) == (scale == "small")
    whole = read_study(ITEMS[title], "paper")
    assert study.parts.keys() <= whole.parts.keys()
    for name, spec in study.parts.items():
        replaced = (spec.dataset, spec.architecture) != (whole.parts[name].dataset, whole.parts[name].architecture)
        assert replaced == (name in study.replaced)
        other = spec.dataset != whole.parts[name].dataset
        assert not other or spec.dataset.rpartition(":")[2] in study.file.cuts, "other data are named"


# Verdicts


def number(value: float, deviation: float, cell: Cell | None = None) -> Published:
    return Published(cell or Cell("accuracy", "one", "erm"), "", ("d", "a", "m", "c", "accuracy %"), value, deviation)


SPEC = make_spec({"defenses": [*"abcd", "erm"], "attacks": ["none"]})
ONE = Study(Item("p", "i", Path()), "paper", StudyFile(title="", shows="", settings=""), (), {"one": SPEC}, ())


@pytest.mark.parametrize(
    ("value", "deviation", "own", "verdict"),
    [
        (90.0, 1.0, Measured(92.0, 90.9, 93.0), "agrees"),
        (90.0, 1.0, Measured(92.0, 91.1, 93.0), "differs"),
        (90.0, 0.05, Measured(88.0, 87.0, 89.9), "differs"),
        (90.0, 0.05, Measured(88.0, 87.0, 89.95), "agrees"),
        (0.1, 0.05, Measured(0.15), "agrees"),  # without an interval
        (0.1, 0.05, Measured(0.16), "differs"),
        (90.0, 1.0, Measured(note="not run"), "missing"),
    ],
)
def test_a_number_agrees_where_the_ranges_meet(value: float, deviation: float, own: Measured, verdict: str) -> None:
    assert _verdict(number(value, deviation), own, ONE)[0] == verdict


def test_what_no_run_has_is_not_compared() -> None:
    bare = Published(None, "no such data", ("d", "a", "m", "c", "x"), 1.0, 0.1)
    assert _verdict(bare, Measured(), ONE) == ("not compared", "no such data")
    replaced = ONE._replace(replaced=frozenset({"one"}))
    assert _verdict(number(1.0, 0.1), Measured(1.0), replaced) == ("not compared", "other data or another network")
    elsewhere = number(1.0, 0.1, Cell("accuracy", "two", "erm"))
    assert _verdict(elsewhere, Measured(1.0), ONE) == ("not compared", "not part of scale paper")


def test_the_order_is_of_methods_that_the_paper_separates() -> None:
    published = [
        number(v, 0.5, Cell("accuracy", "one", name)) for name, v in zip("abcd", (90, 80, 79.5, 70), strict=True)
    ]
    own = dict(zip(published, map(Measured, (90.0, 70.0, 80.0, 75.0)), strict=True))
    assert _order(own, {}) == Order(4, 1, 5), "the paper does not separate b and c; b and d are reversed"
    wide = {each: Measured(found.value, found.value - 9, found.value + 9) for each, found in own.items()}
    assert _order(wide, {}) == Order(2, 0, 5), "a and b, a and d differ by more than their intervals allow"
    equal = dict.fromkeys(published, Measured(80.0)) | {published[0]: Measured(80.9)}
    assert _order(equal, {}) == Order(0, 0, 5), "no difference in the digits that the paper prints"
    other = number(50, 0.5, Cell("accuracy", "two", "a"))
    assert _order({**own, other: Measured(0.0)}, {}) == Order(4, 1, 5), "another part is another comparison"


@pytest.mark.parametrize(
    ("numbers", "claims", "order", "verdict"),
    [
        (["agrees", "agrees"], [], Order(0, 0, 1), "agrees"),
        (["agrees", "differs"], [], Order(3, 0, 3), "same order"),
        (["agrees", "differs"], [], Order(2, 1, 3), "differs"),
        (["differs"], [], Order(0, 0, 0), "differs"),
        (["agrees", "missing"], [], Order(3, 0, 3), "incomplete"),
        (["agrees", "not compared"], ["agrees"], Order(3, 0, 3), "agrees"),
        (["agrees"], ["differs"], Order(3, 0, 3), "differs"),
        ([], ["agrees", "undecided"], Order(0, 0, 0), "undecided"),
        ([], ["agrees"], Order(0, 0, 0), "agrees"),
        ([], [], Order(0, 0, 0), "incomplete"),
        (["agrees", "differs"], [], Order(2, 0, 3), "undecided"),
        (["not compared"], [], Order(3, 0, 3), "same order"),
        (["not compared"], ["agrees"], Order(0, 0, 0), "agrees"),
    ],
)
def test_the_verdict_of_an_item(numbers: list[str], claims: list[str], order: Order, verdict: str) -> None:
    values = itertools.chain(((1.0, each) for each in numbers), ((math.nan, each) for each in claims))
    rows = [dict.fromkeys(COLUMNS, "") | {"published": value, "verdict": each} for value, each in values]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"published": float})
    assert Comparison(ONE, table, order, {}, ("one",)).verdict == verdict


def test_of_a_history_the_mean_and_the_oscillation_count() -> None:
    """Two seeds, whose steps are not in order."""
    rows = [("a", seed, step, "error", value) for seed, step, value in [(0, 2, 0.1), (0, 1, 0.5), (0, 3, 0.3)]]
    rows += [("a", 1, step, "error", value) for step, value in [(1, 0.4), (2, 0.3), (3, 0.2)]]
    histories = pd.DataFrame(rows, columns="defense seed step measure value".split())
    means, oscillations = (list(_of_histories(histories, f"{how}_error")) for how in ("mean", "oscillation"))
    assert [value for value, _, _ in means] == pytest.approx([0.3, 0.3])
    assert [value for value, _, _ in oscillations] == pytest.approx([0.2, 0.0]), "a fall is no oscillation"
    assert list(_of_histories(histories, "mean_other")) == []
    (once,) = _of_histories(histories[histories.step == 1][:1], "oscillation_error")
    assert once[0] == 0.0


def board_of(**tables: pd.DataFrame) -> Any:
    report = SimpleNamespace(**{"models": pd.DataFrame({"defense": []}), **tables})
    spec = SPEC.model_copy(update={"seeds": (0, 1, 2)})
    return SimpleNamespace(report=report, spec=spec, identity=SimpleNamespace(sha256="same"))


def test_numbers_without_an_interval_are_paired_by_seed() -> None:
    """All of the spread is that of the seeds, which the difference does not have."""
    values = {"a": [0.1, 0.4, 0.7], "b": [0.05, 0.36, 0.64]}
    rows = [(name, seed, value) for name, mine in values.items() for seed, value in enumerate(mine)]
    models = pd.DataFrame(rows, columns=["defense", "seed", "kld"])
    one, other = (Cell("kld", "one", name) for name in values)
    apart = np.subtract(*values.values())
    low, high = stats.t.interval(0.95, 2, apart.mean(), stats.sem(apart))
    found = _paired(one, other, {"one": board_of(models=models)})
    assert found == pytest.approx((apart.mean(), low, high))
    assert low > 0
    assert _paired(one, other, {"one": board_of(models=models[1:])}) is None, "a seed is missing"
    assert _paired(one, other._replace(part="two"), {"one": board_of(models=models)}) is None


def test_the_range_of_the_draws_is_a_number() -> None:
    columns = "defense attack source eps seed draw_accuracy_min draw_accuracy_max".split()
    rows = [("a", "none", "a", 0.0, seed, 0.5, 0.7 + seed / 10) for seed in range(3)]
    board = board_of(results=pd.DataFrame(rows, columns=columns))
    found = [value for value, _, _ in _by_seed(Cell("draw_accuracy_range", "one", "a"), board)]
    assert found == pytest.approx([0.2, 0.3, 0.4])


def test_the_interval_of_an_area_that_says_nothing_is_that_of_mann_and_whitney() -> None:
    low, high = _area_interval(0.5, "auroc_total", 40, 60)
    spread = math.sqrt((40 + 60 + 1) / (12 * 40 * 60))
    assert (high - low) / 2 == pytest.approx(1.959964 * spread)
    assert _area_interval(1.0, "auroc_total", 40, 60) == (1.0, 1.0)
    for name in ("aupr_positive_total", "aupr_negative_total"):
        low, high = _area_interval(0.9, name, 40, 60)
        assert 0 < low < 0.9 < high < 1
    positive, negative = (_area_interval(0.9, f"aupr_{name}_total", 40, 60) for name in ("positive", "negative"))
    assert positive[0] < negative[0], "fewer images, wider"


def test_a_number_without_an_interval_has_that_over_seeds() -> None:
    values = [0.1, 0.2, 0.4]
    models = pd.DataFrame({"defense": "a", "seed": [0, 1, 2], "kld": values})
    board: Any = SimpleNamespace(report=SimpleNamespace(models=models))
    study = ONE._replace(parts={"one": SPEC.model_copy(update={"seeds": (0, 1, 2)})})
    own = _own(Cell("kld", "one", "a"), study, {"one": board}, {})
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (own.value, own.low, own.high) == pytest.approx((np.mean(values), low, high))


# From end to end

HOOKS = """
from pathlib import Path
from advbench.registry import hookimpl

TOY = Path(__file__).parent / "toy"

@hookimpl
def advbench_register(register):
    register.paper("toy", "toy_papers:TOY", "a toy")
"""
STUDY = """
title = "a toy"
shows = "That it runs."
settings = "None."

[run]
defenses = ["erm", "bnn"]
attacks = ["fgsm"]
eps = [0.3]
draws = 3

[run.set]
erm = { stages = [8] }
bnn = { stages = [1] }

[parts]
one = {}
two = { defenses = ["erm"] }

[[claims]]
says = "attacks lower the accuracy"
at = { part = "one", number = "accuracy", defense = "erm" }
above = [{}]
below = [{ attack = "fgsm", eps = 0.3 }]

[[claims]]
says = "it is better than chance"
at = { part = "one", number = "accuracy", defense = "erm" }
above = [{}]
by = 0.1
"""
SMALL = """
cuts = "Images."
forbids = "All."

[run]
limit = 60

[parts]
one = {}
"""
PUBLISHED = """dataset,architecture,method,condition,metric,value,deviation,part,defense,source,attack,eps,number,reason
digits,small_cnn,erm,clean,accuracy %,90.0,10.0,one,erm,,none,0,accuracy,
digits,small_cnn,bnn,clean,accuracy %,99.9,,one,bnn,,none,0,accuracy,
digits,small_cnn,bnn,FGSM,AUROC %,50.0,50.0,one,bnn,,fgsm,0.3,auroc_total,
digits,small_cnn,erm,FGSM on bnn,AUROC %,50.0,50.0,one,erm,bnn,fgsm,0.3,fooled_auroc_least_confidence,
digits,small_cnn,erm,clean,accuracy %,90.0,,two,erm,,none,0,accuracy,
imagenet,vgg,erm,clean,accuracy %,90.0,,,,,,,,no such data
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A paper of a third party, registered in this process, with its small study done in `papers`."""
    folder = tmp_path_factory.mktemp("toy")
    install(folder / "site", "toy-papers", HOOKS) if (folder / "site").mkdir() is None else None
    item = folder / "site" / "toy" / "table1"
    item.mkdir(parents=True)
    for name, text in (("paper.toml", STUDY), ("small.toml", SMALL), ("published.csv", PUBLISHED)):
        (item / name).write_text(text)
    (folder / "site" / "toy" / "figure1").mkdir()
    (folder / "site" / "toy" / "figure1" / "paper.toml").write_text(
        'title = "b"\nshows = ""\nsettings = ""\nmissing = "a way to do it"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        patch.chdir(folder)
        registry.cache_clear()
        assert main(["reproduce", "toy/table1", "--device", "cpu"]) == 0
        yield folder
    registry.cache_clear()


@pytest.fixture
def here(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with those results, and without their store."""
    shutil.copytree(toy / "papers", tmp_path / "papers")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "papers" / "toy" / "table1" / "small"


def test_a_study_runs_and_is_compared(toy: Path, here: Path) -> None:
    table = pd.read_csv(here / "comparison.csv")
    verdicts = ["agrees", "differs", "agrees", "agrees", "not compared", "not compared", "agrees", "agrees"]
    assert table.verdict.tolist() == verdicts
    assert table.method.tolist()[-2:] == ["erm: none over fgsm 0.3", "erm over 0.1"]
    results = pd.read_csv(here / "one" / "results.csv").query("source == defense").set_index(["defense", "attack"])
    assert table.own[0] == pytest.approx(100 * results.accuracy["erm", "none"])
    assert table.own_low[0] == pytest.approx(100 * results.accuracy_low["erm", "none"])
    assert table.own[6] == pytest.approx(results.accuracy["erm", "none"] - results.accuracy["erm", "fgsm"])
    run = advbench.open_run(here / "one", str(toy / ".advbench" / "store"))
    scores = run.detection_scores("erm", "fgsm", "least_confidence", fooled="bnn", source="bnn")
    assert table.own[3] == pytest.approx(100 * detection(*scores).auroc)
    assert [table.own_low[3], table.own_high[3]] == pytest.approx([100 * end for end in auroc_interval(*scores)])
    text = (here / "comparison.md").read_text()
    assert "**differs** at scale `small`" in text, "the paper has bnn ahead of erm"
    assert "no such data" in text
    assert "Conclusions not supported at this scale: All." in text


def test_accuracies_on_the_same_images_are_compared_image_by_image(here: Path) -> None:
    row = pd.read_csv(here / "comparison.csv").iloc[6]
    results = pd.read_csv(here / "one" / "results.csv").query("source == defense and defense == 'erm'")
    clean, attacked = (read_board(here / "one").records[key] for key in results.key)
    bits = [
        np.unpackbits(np.frombuffer(b64decode(each["result"]["right"]), np.uint8), count=60)
        for each in (clean, attacked)
    ]
    change = bits[0].astype(float) - bits[1]
    half = stats.norm.ppf(0.975) * math.sqrt(change.var() / 60 + 2 / 60**2)  # erm is deterministic, and has one seed
    assert [row.own, row.own_low, row.own_high] == pytest.approx(
        [change.mean(), change.mean() - half, change.mean() + half], abs=1e-6
    )


def test_a_claim_can_state_a_least_difference(here: Path) -> None:
    study = read_study(find_item("toy/table1"), "small")
    boards, measured = {"one": read_board(here / "one")}, read_measured(here / "measured.csv")
    for by, verdict in ((0.0, "agrees"), (1.5, "differs")):
        claims = [claim.model_copy(update={"by": by}) for claim in study.file.claims]
        assert (
            compare(
                study._replace(file=study.file.model_copy(update={"claims": claims})), boards, measured
            ).table.verdict.iloc[-1]
            == verdict
        )


def test_its_boards_and_comparison_are_checked(here: Path, capsys: Capture) -> None:
    assert main(["reproduce", "toy/table1", "--check"]) == 0
    assert main(["leaderboard", "check", str(here / "one")]) == 0
    measured = (here / "measured.csv").read_text()
    (here / "measured.csv").write_text(measured.replace(",bnn,0,", ",bnn,1,"))
    capsys.readouterr()
    assert main(["reproduce", "toy/table1", "--check"]) == 1
    assert "comparison.csv: missing, or does not match the records" in capsys.readouterr().err
    (here / "measured.csv").write_text(measured)
    raw = (here / "comparison.csv").read_text()
    (here / "comparison.csv").write_text(raw.replace("differs", "agrees"))
    capsys.readouterr()
    assert main(["reproduce", "toy/table1", "--check"]) == 1
    assert "comparison.csv: missing, or does not match the records" in capsys.readouterr().err
    spec = here / "one" / "spec.toml"
    spec.write_text(spec.read_text().replace("draws = 3", "draws = 4"))
    assert main(["reproduce", "toy/table1", "--check"]) == 1
    assert "its spec is not that of toy/table1 at scale small" in capsys.readouterr().err


def test_boards_stand_for_the_store(here: Path, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    shutil.rmtree(here / "two", ignore_errors=True)
    assert main(["reproduce", "toy/table1", "--device", "cpu"]) == 0
    assert "train" not in capsys.readouterr().err, "nothing is computed anew"
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_the_list_shows_what_there_is(here: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["reproduce", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "/" in line.partition(" ")[0]}
    assert lines.keys() == {item.title for item in all_items()}
    assert "small: differs" in lines["toy/table1"]
    assert "a way to do it" in lines["toy/figure1"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["toy/tabel1"], "unknown study 'toy/tabel1'"),
        (["toy/tabel1"], "did you mean 'toy/table1'?"),
        (["toy/table1", "--scale", "smal"], "unknown scale of toy/table1 'smal': expected one of paper, small"),
        (["toy/figure1"], "expected a study that advbench can run, got one that needs a way to do it"),
        ([], "no study; give one"),
        (["toy/table1", "--check", "--out", "nowhere"], "expected an existing folder, got none"),
    ],
)
def test_bad_input_gets_one_line(here: Path, capsys: Capture, words: list[str], problem: str) -> None:
    capsys.readouterr()
    assert main(["reproduce", *words]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("paper.toml", STUDY.replace("shows", "show")),
        ("paper.toml", STUDY.replace("draws = 3", "draws = 0")),
        ("paper.toml", STUDY.replace("above = [{}]", "above = []")),
        ("published.csv", PUBLISHED.replace("90.0,10.0", "ninety,10.0")),
        ("published.csv", PUBLISHED.replace("number,reason", "count,reason")),
    ],
)
def test_a_damaged_study_is_named(toy: Path, tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "table1"
    shutil.copytree(toy / "site" / "toy" / "table1", folder)
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=r"table1|setting"):
        read_study(Item("toy", "table1", folder), "paper")


def test_the_interval_of_a_difference_is_newcombes() -> None:
    one, other = (Measured(x / n, *wilson(x / n, n)) for x, n in ((56, 70), (48, 80)))
    assert _difference(one, other) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5), "Newcombe 1998, Table II, (a)"
    exact = _difference(one, Measured(0.6))
    assert exact == pytest.approx((0.2, one.low - 0.6, one.high - 0.6)), "a number without an interval is exact"
    assert all(map(math.isnan, _difference(Measured(0.8), Measured(0.6))[1:]))


# The results of this project


def test_committed_results_hold() -> None:
    done = sorted(RESULTS.glob("*/*/*/comparison.csv"))
    for path in done:
        paper, item, scale = path.parts[-4:-1]
        find_item(f"{paper}/{item}")
        assert main(["reproduce", f"{paper}/{item}", "--scale", scale, "--check", "--out", str(RESULTS)]) == 0
    specs = {path.parent for path in RESULTS.rglob("spec.toml")}
    assert {path.parent for path in specs} == {path.parent for path in done}
    assert all(json.loads((path / "data.json").read_text()) for path in specs)

"""Curves along one axis, and what they say of convergence."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from conftest import Cli

import advbench
from advbench.grid.convergence import VALUES, along
from advbench.grid.spec import make_spec
from advbench.report.curves import Curve, converged

SMALL = "--defense erm --attack pgd --eps 0.05,0.12 --limit 200 --set erm.stages=[8]"


def rows(accuracies: list[float], width: float = 0.05) -> pd.DataFrame:
    """A curve of those accuracies at 1, 2, ..., with intervals of that half-width."""
    frame = pd.DataFrame({"accuracy": accuracies, "value": range(1, len(accuracies) + 1)})
    frame = frame.assign(accuracy_low=frame.accuracy - width, accuracy_high=frame.accuracy + width)
    return frame.assign(defense="d", attack="a", eps=0.1, seed=0)


@pytest.mark.parametrize(
    ("accuracies", "value"),
    [
        ([0.9, 0.5, 0.49, 0.5], 2),
        ([0.9, 0.7, 0.5, 0.3], None),
        ([0.5, 0.5], 1),
        ([0.5, 0.56, 0.52], 1),
        ([0.9, 0.89, 0.88, 0.80], None),
        ([0.9, 0.3, 0.5, 0.31], 2),
    ],
)
def test_converged_is_the_first_value_that_no_later_one_falls_below(accuracies: list[float], value: int | None) -> None:
    assert converged(rows(accuracies), "steps") == value


def test_more_draws_may_not_raise_the_accuracy_either() -> None:
    assert converged(rows([0.5, 0.56, 0.57]), "steps") == 1
    assert converged(rows([0.5, 0.56, 0.57]), "draws") == 2
    assert converged(rows([0.5, 0.56, 0.62]), "draws") is None


def test_a_curve_says_where_it_converges() -> None:
    (line,) = Curve("steps", rows([0.9, 0.5, 0.49])).lines()
    assert line == "d under a 0.1, seed 0: falls no more from steps 2 on, 0.500 [0.450, 0.550]; 0.490 at steps 3"
    (line,) = Curve("steps", rows([0.9, 0.5, 0.1])).lines()
    assert line == "d under a 0.1, seed 0: still falling, 0.100 at steps 3: unconverged"


def test_along_sets_the_axis_at_the_largest_eps_and_nothing_else() -> None:
    spec = make_spec(
        {"defenses": ["bnn"], "attacks": ["eot_pgd@x"], "eps": [0.2, 0.1], "set": {"eot_pgd@x": {"steps": 3}}}
    )
    runs = along(spec, "samples", [4, 2])
    assert [value for value, _ in runs] == [2, 4]
    assert [run.set for _, run in runs] == [{"eot_pgd@x": {"steps": 3, "samples": n}} for n in (2, 4)]
    assert all(run.eps == (0.2,) and run.affinity == () for _, run in runs)
    assert [run.draws for _, run in along(spec, "draws")] == list(VALUES["draws"])


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        ("width", [], "--over: expected one of samples, steps, restarts, draws, got 'width'"),
        ("samples", [], "an axis of attack 'fgsm': draws"),
        ("draws", [5], "--values: expected at least two whole numbers >= 1, got 5"),
        ("draws", [0, 5], "--values: expected at least two whole numbers >= 1, got 0,5"),
    ],
)
def test_bad_axes_are_refused(axis: str, values: list[int], message: str) -> None:
    with pytest.raises(advbench.InputError) as error:
        along(make_spec({"defenses": ["erm"], "attacks": ["fgsm"]}), axis, values)
    assert message in str(error.value)


def test_steps_that_are_long_enough_converge(cli: Cli, tmp_path: Path) -> None:
    done = cli("curve", *SMALL.split(), "--over", "steps", "--values", "1,10,20,40")
    assert done.returncode == 0, done.stderr
    assert "erm under pgd 0.12, seed 0: falls no more from steps" in done.stdout
    table = pd.read_csv(tmp_path / "results" / "curve.csv")
    assert table.value.tolist() == [1, 10, 20, 40]
    assert table.backward_passes.tolist() == [1, 10, 20, 40]
    assert table["flags"].isna().all()
    assert (table.accuracy_low <= table.accuracy).all()
    picture = matplotlib.image.imread(tmp_path / "results" / "curve.png")
    assert min(picture.shape[:2]) > 500
    assert picture[..., :3].std() > 0.05


def test_steps_that_are_too_short_are_flagged_as_unconverged(cli: Cli, tmp_path: Path) -> None:
    short = "--set pgd.step_size=0.02 --set pgd.random_start=false"
    done = cli("curve", *SMALL.split(), *short.split(), "--over", "steps", "--values", "5,20,50")
    assert done.returncode == 0, done.stderr
    assert "unconverged" in done.stdout
    table = pd.read_csv(tmp_path / "results" / "curve.csv")
    assert table["flags"].tolist()[-1] == "unconverged"
    assert table["flags"][:-1].isna().all()


def test_more_draws_evaluate_the_same_examples(cli: Cli, tmp_path: Path) -> None:
    options = "--defense bnn --attack fgsm --eps 0.1 --limit 100 --set bnn.stages=[4]"
    done = cli("curve", *options.split(), "--over", "draws", "--values", "2,5,20")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train bnn") + done.stdout.count("train bnn") == 1
    table = pd.read_csv(tmp_path / "results" / "curve.csv")
    assert table.axis.unique().tolist() == ["draws"]
    assert table.value.tolist() == [2, 5, 20]

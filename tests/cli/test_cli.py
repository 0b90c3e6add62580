"""The command line: what bad input gets, and what each command prints."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from advbench.cli.app import main
from advbench.cli.options import SPEC_OPTIONS

QUICK = ["--defense", "erm", "--attack", "fgsm", "--eps", "0.1", "--limit", "20", "--set", "erm.stages=[1]"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


BAD = {
    "unknown defense": (["--defense", "advbnn"], "unknown defense 'advbnn'.*did you mean 'adv_bnn'"),
    "unknown attack": (["--attack", "eotpgd"], "unknown attack 'eotpgd'.*did you mean 'eot_pgd'"),
    "unknown data set": (["--dataset", "mnits"], "unknown dataset 'mnits'.*did you mean 'mnist'"),
    "unknown net": (["--arch", "vgg61"], "unknown architecture 'vgg61'.*did you mean 'vgg16'"),
    "unknown hyperparameter": (["--set", "erm.learning_rate=1"], "defense 'erm': unknown hyperparameter of ERM"),
    "close hyperparameter": (["--set", "erm.stage=[1]"], "did you mean 'stages'"),
    "wrong type": (["--set", "erm.lr=fast"], "hyperparameter 'lr' of ERM: expected .* got 'fast'"),
    "out of range": (["--set", "erm.lr=-1"], "hyperparameter 'lr' of ERM: expected .*greater than 0, got -1"),
    "setting of an absent plugin": (["--set", "bnn.lr=1"], "unknown label in --set 'bnn'.*one of arch, erm, fgsm"),
    "malformed setting": (["--set", "lr=1"], "--set: expected name.param=value, got 'lr=1'"),
    "negative eps": (["--eps", "-0.1"], "threat eps: expected a finite number >= 0, got -0.1"),
    "eps in grey levels": (["--eps", "8"], "at most 1 for linf.*did you mean 8/255"),
    "eps that is no number": (["--eps", "a,b"], "--eps: expected numbers, such as 0.1 or 8/255"),
    "eps beyond floats": (
        ["--eps", "1e400"],
        "threat eps: expected a finite number >= 0, got inf|setting 'eps.*got inf",
    ),
    "empty store": (["--store", ""], "store '': expected a writable folder"),
    "odd label": (["--defense", "erm@"], "setting 'defenses'.*NAME or NAME@LABEL"),
    "boolean": (["--set", "erm.lr=true"], "hyperparameter 'lr' of ERM: expected a value that is not a boolean"),
    "no epochs": (["--set", "erm.stages=[0]"], "hyperparameter 'stages"),
    "preset of a wrong type": (["--set", "erm.preset=[1]"], "unknown preset of ERM"),
    "table in the way": (["--out", "tables"], "no folder named results.csv in it"),
    "eps nan": (["--eps", "0/0"], "--eps: expected numbers"),
    "unknown norm": (["--norm", "l1"], "setting 'norm': expected .*'linf' or 'l2', got 'l1'"),
    "no images": (["--limit", "0"], "setting 'limit': expected .*greater than or equal to 1"),
    "no draws": (["--draws", "0"], "setting 'draws': expected .*greater than or equal to 1"),
    "seed that is no number": (["--seeds", "one"], "--seeds: expected whole numbers, got 'one'"),
    "negative seed": (["--seeds", "-1"], "setting 'seeds.0': expected a value greater than or equal to 0, got -1"),
    "doubled name": (["--defense", "erm,erm"], "each value once; repeated: erm"),
    "unknown option": (["--epsilon", "1"], "[Nn]o such option.*--epsilon"),
    "option that is no number": (["--draws", "many"], "[Ii]nvalid value for.*draws"),
    "unreadable spec": (["--spec", "absent.toml"], "spec file absent.toml: expected readable TOML, got No such file"),
    "executor": (["--executor", "slurm"], "--executor: expected inline, local or ray, got 'slurm'"),
    "device": (["--device", "tpu9"], "--device: expected devices that torch can use"),
    "store": (["--store", "nosuch://x"], "store 'nosuch://x': expected a writable folder or fsspec URL"),
    "absent data": (["--dataset", "npz:absent.npz"], "data set 'npz:absent.npz': expected an existing path"),
    "net too deep": (["--arch", "vgg16"], "architecture 'vgg16': expected images of at least 32x32, got 8x8"),
    "output in the way": (["--out", "blocked"], "output folder blocked: expected a writable folder"),
    "store in the way": (["--store", "blocked"], "store 'blocked': expected a writable folder"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_line_and_exit_code_2_and_leaves_nothing(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import re

    (tmp_path / "blocked").write_text("in the way")
    (tmp_path / "tables" / "results.csv").mkdir(parents=True)
    assert main(["run", *QUICK, *options]) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err)
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "blocked"]


@pytest.mark.parametrize("missing", ["--defense", "--attack"])
def test_a_run_needs_a_defense_and_an_attack(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"--defense": ["--attack", "pgd"], "--attack": ["--defense", "erm"]}[missing]
    assert main(["run", *other]) == 2
    assert f"give at least one with {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "set = 3",
        "eps = [true]",
        "seeds = ['1']",
        "dataset = 3",
        "colour = 'red'",
        'eps = "big"',
        "\udcff",
    ],
)
def test_a_spec_that_is_none_gets_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    eps = [] if "eps" in text else ["--eps", "0.1"]
    assert main(["run", "--defense", "erm", "--attack", "fgsm", "--spec", "s.toml", *eps]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_training_that_diverges_fails_its_cells_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--attack", "fgsm", "--eps", "0.1", "--limit", "20", "--set", "bnn.stages=[1]"]
    code = main(["run", "--defense", "erm,bnn", *quick, "--set", "erm.stages=[2]", "--set", "erm.lr=1e30"])
    out, err = capsys.readouterr()
    assert code == 1
    assert "expected a finite loss" in err
    assert "Traceback" not in err
    assert "[10/10] " in err
    rows = (tmp_path / "results" / "results.csv").read_text().splitlines()[1:]
    assert sum("failed: " in row for row in rows) == 4
    assert sum("failed: " not in row for row in rows) == 2
    board = (tmp_path / "results" / "leaderboard.md").read_text()
    assert "failed" in board
    assert "depends on a failed task" in board
    assert "4 tasks run, 0 already done, 6 failed" in out


def test_spec_file_options_and_plan_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = """
        dataset = "digits"
        defenses = ["erm", "adv_bnn@strong"]
        attacks = ["pgd"]
        eps = [0.1]
        limit = 20
        [set.erm]
        stages = [1]
        [set."adv_bnn@strong"]
        eps = 0.2
    """
    (tmp_path / "s.toml").write_text(spec)
    assert main(["plan", "--spec", "s.toml", "--eps", "0.1,0.2", "--tasks"]) == 0
    out = capsys.readouterr().out
    assert "| all      |        16 |       16 |" in out
    assert "10 rows in results.csv" in out
    assert out.count("evaluate adv_bnn@strong") == 5
    assert not (tmp_path / ".advbench").exists()


def test_show_prints_every_hyperparameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "adv_bnn"]) == 0
    out = capsys.readouterr().out
    from advbench_defenses.adv_bnn import AdvBNN

    assert all(f"\n{name} = " in out for name in AdvBNN.Params.model_fields)
    assert "Liu et al. 2019" in out
    assert "preset paper: 'classifier'" in out
    assert main(["show", "advbnn"]) == 2


def test_doctor_passes_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert "torch" in out
    assert main(["doctor", "--store", "nosuch://x"]) == 1


def test_report_writes_the_tables_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK]) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}
    (tmp_path / "results" / "results.csv").write_text("edited")
    (tmp_path / "results" / "leaderboard.md").unlink()
    assert main(["report", "results"]) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()} == before
    assert main(["report", "results", "--store", "another"]) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()} == before
    assert main(["report", "absent"]) == 2
    capsys.readouterr()


def test_the_written_spec_repeats_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK]) == 0
    assert main(["run", "--spec", "results/spec.toml", "--out", "again"]) == 0
    assert "nothing to do: all 4 tasks are already done" in capsys.readouterr().out
    assert (tmp_path / "again" / "results.csv").read_bytes() == (tmp_path / "results" / "results.csv").read_bytes()
    assert tomllib.loads((tmp_path / "results" / "spec.toml").read_text())["set"] == {"erm": {"stages": [1]}}


def test_every_setting_has_an_option() -> None:
    from advbench.grid.spec import RunSpec

    # The kind of device follows from the devices that `--device` names; files are named by defense, attack and net.
    assert {option.name for option in SPEC_OPTIONS} - {"file", "run_files", "converge_limit"} == set(
        RunSpec.model_fields
    ) - {
        "device",
        "files",
    }

"""Which data a run is about, as `data.json` says it, and reports that need no more than that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.cli.app import main
from advbench.data.datasets import load_dataset
from advbench.data.ood import OodSet
from advbench.errors import InputError
from advbench.grid.identity import (
    Identity,
    Shape,
    identify,
    is_about,
    parse_identity,
    read_identity,
)
from advbench.grid.spec import RunSpec, make_spec
from advbench.models.nets import build

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
COUNTS = st.integers(0, 10**9)
SIZES = st.integers(1, 160)
SHAPES = st.builds(Shape, channels=SIZES, height=SIZES, width=SIZES, classes=SIZES)
OTHERS = st.builds(
    OodSet,
    name=NAMES,
    label=st.text(max_size=20),
    sha256=DIGESTS,
    images=COUNTS,
    scale=st.floats(0.1, 10),
    signed=st.booleans(),
)
GOOD = Identity(
    name="digits",
    sha256="0" * 64,
    train_count=10,
    test_count=5,
    shape=Shape(channels=1, height=8, width=8, classes=10),
)


@given(
    st.builds(
        Identity,
        name=NAMES,
        sha256=DIGESTS,
        train_count=COUNTS,
        test_count=COUNTS,
        shape=SHAPES,
        foreign=st.lists(OTHERS, max_size=3).map(tuple),
    )
)
def test_what_is_written_is_read(identity: Identity) -> None:
    assert parse_identity(identity.to_bytes()) == identity


@pytest.mark.parametrize(
    "change",
    [
        {"shape": {"channels": 1, "height": 8, "width": 8}},
        {"shape": {"channels": 1, "height": 8, "width": 8, "classes": 0}},
        {"shape": {"channels": 1, "height": 8, "width": 10**9, "classes": 10}},
        {"shape": {"channels": 1000, "height": 1000, "width": 1000, "classes": 10}},
        {"shape": {"channels": 1, "height": 8, "width": 8, "classes": 10**9}},
        {"shape": {"channels": True, "height": 8, "width": 8, "classes": 10}},
        {"shape": [1, 8, 8, 10]},
        {"sha256": "0"},
        {"train_count": "10"},
        {"foreign": [{}]},
        {"more": 1},
    ],
)
def test_what_is_none_is_refused_in_one_line(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps({**json.loads(GOOD.to_bytes()), **change}))
    with pytest.raises(InputError, match=r"data\.json: expected a JSON object with name") as caught:
        read_identity(tmp_path)
    assert "\n" not in str(caught.value)


def spec_of(**values: object) -> RunSpec:
    return make_spec({"dataset": "digits", "defenses": ["erm"], "attacks": ["fgsm"], **values})


def test_an_identity_is_about_the_data_sets_of_its_spec() -> None:
    other = OodSet(name="notmnist", label="notmnist", sha256="1" * 64, images=5, scale=1.0)
    assert is_about(GOOD, spec_of())
    assert not is_about(GOOD, spec_of(dataset="mnist"))
    assert not is_about(GOOD, spec_of(ood=["notmnist"]))
    both = GOOD.model_copy(update={"foreign": (other,)})
    assert is_about(both, spec_of(ood=["notmnist"]))
    assert not is_about(both, spec_of(ood=["notmnist"], ood_scale=5.0))
    assert not is_about(both, spec_of(ood=["notmnist"], ood_signed=True))


@pytest.mark.parametrize("name", ["small_cnn", "fcnn1"])
def test_a_blank_image_makes_a_net_of_the_same_size(name: str) -> None:
    dataset = load_dataset("digits", None)
    blank = identify(dataset).blank()
    real, sized = (build(name, data, seed=0).state_dict() for data in (dataset.train, blank))
    assert [(key, value.shape) for key, value in real.items()] == [(key, value.shape) for key, value in sized.items()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("identity")
    options = ["--set", "erm.stages=[1]", "--limit", "20", "--draws", "2", "--eps", "0.1", "--executor", "inline"]
    places = ["--store", str(top / "store"), "--out", str(top / "results")]
    assert main(["run", "--defense", "erm", "--attack", "fgsm", *options, *places]) == 0
    return top


def report(folder: Path, made: Path) -> int:
    return main(["report", str(folder), "--store", str(made / "store"), "--format", "csv"])


def absent(*arguments: object) -> None:
    raise InputError("data set 'digits'", expected="it there", got="nothing")


def test_a_report_takes_the_word_of_data_json(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(made / "results", tmp_path / "results"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert b",missing," not in before["results.csv"]
    monkeypatch.setattr("advbench.grid.run.load_dataset", absent)
    for path in folder.glob("*.csv"):
        path.unlink()
    assert report(folder, made) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before


@pytest.mark.parametrize("change", ["no file", "another data set"])
def test_a_report_asks_for_the_data_where_that_says_too_little(
    change: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made / "results", tmp_path / "results"))
    said = json.loads((folder / "data.json").read_text())
    said |= {"name": "mnist"} if change == "another data set" else {}
    (folder / "data.json").write_text(json.dumps(said))
    if change == "no file":
        (folder / "data.json").unlink()
    assert report(folder, made) == 0
    monkeypatch.setattr("advbench.grid.run.load_dataset", absent)
    capsys.readouterr()
    assert report(folder, made) == 2
    assert "data set 'digits': expected it there, got nothing" in capsys.readouterr().err

from __future__ import annotations

import math
import re
import string
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import some_identity
from hypothesis import example, given, settings
from hypothesis import strategies as st

from advbench.attacks import SELECTION_DRAWS
from advbench.cli.options import make_spec as make
from advbench.data.base import Data
from advbench.errors import InputError
from advbench.grid.inputs import as_json
from advbench.grid.plan import make_plan
from advbench.grid.spec import RunSpec, make_spec, parse_settings, parse_toml, plugin_version, resolve
from advbench.models.nets import build
from advbench.registry import registry

MINIMAL: dict[str, Any] = {"defenses": ["erm"], "attacks": ["pgd"]}

NAMES = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=8)
LABELS = st.builds("{}@{}".format, NAMES, NAMES) | NAMES.filter(lambda name: name != "none")
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8)
SPECS = st.fixed_dictionaries(
    {
        "defenses": st.lists(LABELS, min_size=1, max_size=3, unique=True),
        "attacks": st.lists(LABELS, min_size=1, max_size=3, unique=True),
    },
    optional={
        "dataset": st.sampled_from(["digits", "mnist", "cifar10"]) | st.builds("npz:{}".format, st.text(min_size=1)),
        "architecture": NAMES,
        "norm": st.sampled_from(["linf", "l2"]),
        "eps": st.lists(st.floats(1e-12, 1), min_size=1, max_size=4, unique=True),
        "seeds": st.lists(st.integers(0, 2**70), min_size=1, max_size=4, unique=True),
        "draws": st.integers(1, 10**6),
        "limit": st.integers(1, 10**6) | st.none(),
        "affinity": st.just(()) | st.none(),
        "ood": st.lists(st.sampled_from(["digits", "npz:a.npz"]), unique=True),
        "ood_scale": st.floats(1e-6, 1e6),
        "ood_signed": st.booleans(),
        "history": st.none() | st.just("epoch") | st.integers(1, 10**6),
        "batch_size": st.integers(1, 10**6),
        "precision": st.sampled_from(["float32", "bfloat16"]),
        "threads": st.integers(1, 64),
        "set": st.dictionaries(
            LABELS | st.text(min_size=1), st.dictionaries(PARAMETERS, VALUES, max_size=3), max_size=3
        ),
    },
)


# TOML


@settings(deadline=None, max_examples=200)
@given(values=SPECS)
@example(values={**MINIMAL, "set": {"adv_bnn@x": {"stages": [[1, 2], []], "note": 'ü "\\\n\t\r\x00\x7f\u2028'}}})
def test_spec_comes_back_from_its_toml(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    spec = make_spec(values)
    assert reread(spec, tmp_path_factory.mktemp("spec")) == spec


@pytest.mark.parametrize(
    "value",
    [
        "",
        "plain",
        'quo"te',
        "back\\slash",
        "new\nline",
        "\r\n",
        "\x00\x1f",
        "\x7f",
        "grün 東京 🙂",
        "\u2028",
        "'''",
        "#",
    ],
    ids=repr,
)
def test_strings_come_back_from_toml(tmp_path: Path, value: str) -> None:
    spec = make_spec({**MINIMAL, "dataset": f"npz:{value}", "set": {"erm": {"a": value, "b": [value, {value: 1}]}}})
    assert reread(spec, tmp_path) == spec


def test_numbers_keep_their_type_in_toml(tmp_path: Path) -> None:
    values = {"a": 1, "b": 1.0, "c": True, "d": 1e-7, "e": 1e22, "f": -0.0, "g": 2**80}
    again = reread(make_spec({**MINIMAL, "set": {"erm": values}}), tmp_path).set["erm"]
    assert {name: repr(value) for name, value in again.items()} == {n: repr(v) for n, v in values.items()}


def test_a_run_of_the_clean_row_alone_comes_back_from_its_toml(tmp_path: Path) -> None:
    spec = make_spec({"defenses": ["erm"], "attacks": ["none"]})
    assert reread(spec, tmp_path) == spec


def test_a_run_at_eps_0_alone_comes_back_from_its_toml(tmp_path: Path) -> None:
    spec = make_spec({**MINIMAL, "eps": [0.0]})
    assert reread(spec, tmp_path) == spec


@pytest.mark.parametrize(
    "raw",
    [b"defenses = [", b"a = 1\na = 2\n", b"\xff\xfe", b"just words", b'x = "unterminated\n', b"\x00"],
    ids=repr,
)
def test_file_that_is_no_toml_is_refused_in_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "spec.toml"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"^spec file [^\n]*spec\.toml: expected readable TOML, got [^\n]+$"):
        parse_toml(path)


def test_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml: expected readable TOML, got No such file or directory$"):
        parse_toml(tmp_path / "absent.toml")
    with pytest.raises(InputError, match=r"expected readable TOML, got Is a directory$"):
        parse_toml(tmp_path)


# Validation


def test_defaults_are_completed_by_the_data_set() -> None:
    spec = make_spec(MINIMAL)
    assert (spec.dataset, spec.architecture, spec.eps) == ("digits", "small_cnn", (0.05, 0.1, 0.15))
    assert (spec.seeds, spec.draws, spec.limit, spec.norm) == ((0,), 20, None, "linf")
    mnist = make_spec({**MINIMAL, "dataset": "mnist", "norm": "l2"})
    assert (mnist.architecture, mnist.eps) == ("bal_cnn", (1.0, 2.0, 3.0))
    own = make_spec({**MINIMAL, "dataset": "npz:/a/b.npz"})
    assert (own.architecture, own.eps) == ("small_cnn", (2 / 255, 4 / 255, 8 / 255))


def test_what_is_given_stands_over_the_defaults_of_the_data_set() -> None:
    spec = make_spec({**MINIMAL, "architecture": "fcnn1", "eps": [0.2, 0.1]})
    assert (spec.architecture, spec.eps) == ("fcnn1", (0.1, 0.2))


def test_the_clean_row_is_no_attack_and_no_eps() -> None:
    spec = make_spec({"defenses": ["erm"], "attacks": ["none", "pgd"], "eps": [0, 0.1]})
    assert (spec.attacks, spec.eps) == (("pgd",), (0.1,))


def test_completing_twice_changes_nothing() -> None:
    for values in ({}, {"eps": [0.3, 0]}, {"attacks": ["none"]}, {"eps": [0]}, {"dataset": "cifar10"}):
        spec = make_spec({**MINIMAL, **values})
        assert spec.completed() == spec


def test_spec_cannot_be_changed() -> None:
    spec = make_spec(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        spec.draws = 3


@pytest.mark.parametrize(
    ("name", "near"), [("defense", "defenses"), ("attack", "attacks"), ("epss", "eps"), ("draw", "draws")]
)
def test_unknown_setting_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(
        InputError, match=rf"^unknown setting '{name}': expected one of [^\n]*; did you mean '{near}'\?$"
    ):
        make_spec({**MINIMAL, name: 1})


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"eps": [-0.1]}, "eps"),
        ({"eps": [8]}, "did you mean 8/255"),
        ({"eps": [1.0001]}, "at most 1 for linf"),
        ({"eps": [math.nan]}, "eps"),
        ({"eps": [math.inf]}, "eps"),
        ({"eps": ["large"]}, "eps"),
        ({"eps": 0.1}, "eps"),
        ({"eps": [0.1, 0.2, 0.1]}, "repeated: 0.1"),
        ({"eps": [-1], "norm": "l2"}, "eps"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"seeds": [0.5]}, "seeds"),
        ({"seeds": [1, 1]}, "repeated: 1"),
        ({"draws": 0}, "draws"),
        ({"draws": -5}, "draws"),
        ({"draws": "many"}, "draws"),
        ({"draws": 2.5}, "draws"),
        ({"draws": None}, "draws"),
        ({"limit": 0}, "limit"),
        ({"batch_size": 0}, "batch_size"),
        ({"threads": 0}, "threads"),
        ({"precision": "float16"}, "precision"),
        ({"norm": "l1"}, "norm"),
        ({"dataset": 3}, "dataset"),
        ({"defenses": []}, "defenses"),
        ({"defenses": ["erm", "erm"]}, "repeated: erm"),
        ({"defenses": [1]}, "defenses"),
        ({"attacks": []}, "attacks"),
        ({"attacks": ["pgd@a", "pgd@a"]}, "repeated: pgd@a"),
        ({"set": {"pgd": 3}}, "set.pgd"),
        ({"set": ["pgd.steps=3"]}, "set"),
    ],
    ids=repr,
)
def test_value_of_wrong_type_or_range_is_refused_in_one_line(values: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError, match=r"^(setting|threat) [^\n]*: expected [^\n]+, got [^\n]+$") as caught:
        make_spec({**MINIMAL, **values})
    assert where in str(caught.value)


@pytest.mark.parametrize("name", ["defenses", "attacks"])
def test_missing_defenses_and_attacks_are_named(name: str) -> None:
    values = {key: value for key, value in MINIMAL.items() if key != name}
    with pytest.raises(InputError, match=rf"^setting '{name}': expected field required[^\n]*$"):
        make_spec(values)


@settings(deadline=None, max_examples=100)
@given(name=st.sampled_from(sorted(RunSpec.model_fields)), value=VALUES | st.none())
def test_any_value_gives_a_spec_or_one_line(name: str, value: object) -> None:
    try:
        outcome = make_spec({**MINIMAL, name: value}).dataset
    except InputError as error:
        outcome = str(error)
    assert "\n" not in outcome or outcome == value


# Settings


def test_settings_are_toml_where_they_parse_and_else_strings() -> None:
    items = [
        "pgd.steps=40",
        "pgd.step_size=1e-2",
        "pgd.random_start=false",
        "pgd.loss=margin",
        "adv_bnn@x.stages=[3, 2]",
        'adv_bnn@x.kl_scope = "classifier"',
        "adv_bnn@x.note=a=b",
        "adv_bnn@x.empty=",
        "name.with.dots.lr=1",
    ]
    assert parse_settings(items) == {
        "pgd": {"steps": 40, "step_size": 0.01, "random_start": False, "loss": "margin"},
        "adv_bnn@x": {"stages": [3, 2], "kl_scope": "classifier", "note": "a=b", "empty": ""},
        "name.with.dots": {"lr": 1},
    }


def test_later_setting_wins() -> None:
    assert parse_settings(["pgd.steps=1", "pgd.steps=2"]) == {"pgd": {"steps": 2}}
    assert parse_settings([]) == {}


def test_a_value_cannot_smuggle_in_another_line() -> None:
    assert parse_settings(["pgd.loss=1\nother = 2"]) == {"pgd": {"loss": "1\nother = 2"}}


@pytest.mark.parametrize("item", ["", "pgd", "pgd.steps", "steps=3", ".steps=3", "pgd.=3", "=3", "pgd steps 3"])
def test_setting_of_another_form_is_refused(item: str) -> None:
    with pytest.raises(InputError, match=r"^--set: expected name\.param=value, got "):
        parse_settings([item])


# Resolving


def test_hyperparameters_are_defaults_then_preset_then_what_was_given() -> None:
    spec = make_spec({"defenses": ["adv_bnn", "adv_bnn@hot"], "attacks": ["pgd"], "set": {"adv_bnn@hot": {"lr": 0.5}}})
    (plain, hot), (pgd,) = resolve(spec)
    from advbench_defenses.adv_bnn import AdvBNN

    preset = AdvBNN.presets["digits"]
    assert (plain.label, hot.label, plain.component.name, hot.component.name) == (
        "adv_bnn",
        "adv_bnn@hot",
        "adv_bnn",
        "adv_bnn",
    )
    assert plain.params["lr"] == preset["lr"] != AdvBNN.Params().lr
    assert hot.params == {**plain.params, "lr": 0.5}
    assert set(plain.params) == set(AdvBNN.Params.model_fields)
    assert pgd.params["steps"] == 20


def test_preset_follows_the_data_set_and_can_be_named() -> None:
    from advbench_defenses.adv_bnn import AdvBNN

    values = {
        "defenses": ["adv_bnn", "adv_bnn@paper"],
        "attacks": ["pgd"],
        "set": {"adv_bnn@paper": {"preset": "paper"}},
    }
    for dataset in ("mnist", "cifar10"):
        (own, paper), _ = resolve(make_spec({**values, "dataset": dataset}))
        assert own.params["eps"] == AdvBNN.presets[dataset]["eps"]
        assert paper.params["kl_scope"] == "classifier"
        assert tuple(paper.params["stages"]) == (80, 60, 40, 20)
    (own, _), _ = resolve(make_spec({**values, "dataset": "npz:/nowhere/a.npz"}))
    assert own.params == AdvBNN.Params().model_dump(mode="json")


def test_identity_holds_plugin_version_and_hyperparameters_but_no_label() -> None:
    values = {"defenses": ["erm@one", "erm@two"], "attacks": ["fgsm"]}
    (one, two), _ = resolve(make_spec(values))
    assert one.component == two.component
    assert set(as_json(one.component)) == {"name", "distribution", "version", "params"}
    assert one.component.distribution == "advbench"


def test_passes_are_estimated_from_the_hyperparameters() -> None:
    values = {"defenses": ["erm"], "attacks": ["pgd"], "set": {"pgd": {"steps": 7, "restarts": 3}}}
    _, (pgd,) = resolve(make_spec(values))
    assert pgd.passes == 21 + 3 * SELECTION_DRAWS, "draws choose among restarts"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"defenses": ["adv_bn"]}, "unknown defense 'adv_bn'.*did you mean 'adv_bnn'"),
        ({"defenses": ["adv_bn@x"]}, "unknown defense 'adv_bn'.*did you mean 'adv_bnn'"),
        ({"attacks": ["pdg"]}, "unknown attack 'pdg'.*did you mean 'pgd'"),
        ({"dataset": "digit"}, "unknown dataset 'digit'.*did you mean 'digits'"),
        ({"architecture": "resnet2"}, "unknown architecture 'resnet2'.*did you mean 'resnet20'"),
        ({"set": {"pgdd": {"steps": 1}}}, "unknown label in --set 'pgdd'.*did you mean 'pgd'"),
        ({"set": {"fgsm": {"loss": "ce"}}}, "unknown label in --set 'fgsm'"),
        ({"set": {"pgd": {"step": 1}}}, "attack 'pgd'.*unknown hyperparameter of PGD 'step'.*did you mean 'steps'"),
        ({"set": {"erm": {"learning": 1}}}, "defense 'erm'.*unknown hyperparameter of ERM 'learning'"),
        ({"set": {"erm": {"preset": "mnis"}}}, "unknown preset of ERM 'mnis'.*did you mean 'mnist'"),
        ({"set": {"pgd": {"steps": 0}}}, "attack 'pgd'.*hyperparameter 'steps' of PGD: expected .*got 0"),
        ({"set": {"pgd": {"steps": "many"}}}, "hyperparameter 'steps' of PGD: expected .*got 'many'"),
        ({"set": {"erm": {"lr": -1}}}, "defense 'erm'.*hyperparameter 'lr' of ERM: expected .*got -1"),
        ({"set": {"erm": {"lr": math.nan}}}, "hyperparameter 'lr' of ERM: expected .*got nan"),
    ],
    ids=repr,
)
def test_what_cannot_be_resolved_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    spec = make_spec({**MINIMAL, **values})
    with pytest.raises(InputError, match=message) as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)


def test_label_of_a_defense_is_named_in_its_errors() -> None:
    spec = make_spec({"defenses": ["erm@fast"], "attacks": ["pgd"], "set": {"erm@fast": {"lr": "x"}}})
    with pytest.raises(InputError, match=r"^defense 'erm@fast': "):
        resolve(spec)


def reread(spec: RunSpec, folder: Path) -> RunSpec:
    path = folder / "spec.toml"
    path.write_bytes(spec.to_toml().encode())
    values = parse_toml(path)
    assert values == tomllib.loads(path.read_bytes().decode())
    return make_spec(values)


def test_affinity_names_attacks_of_the_run() -> None:
    values = {"defenses": ["erm"], "attacks": ["fgsm", "pgd"]}
    assert make_spec(values).affinity == ("pgd",)
    assert make_spec({**values, "attacks": ["none", "fgsm", "cw_one_step"]}).affinity == ("fgsm",)
    assert make_spec({**values, "attacks": ["fgsm", "pgd@long"]}).affinity == ("pgd@long",)
    assert make_spec({**values, "attacks": ["none"]}).affinity == ()
    assert make_spec({**values, "affinity": []}).affinity == ()
    spec = make_spec({**values, "affinity": ["pgd"]})
    assert spec.affinity == ("pgd",)
    with pytest.raises(InputError, match="did you mean 'pgd'"):
        make_spec({**values, "affinity": ["pdg"]})


def test_examples_stop_early_where_the_attack_can_and_nobody_else_sees_them() -> None:
    values: dict[str, Any] = {
        "defenses": ["erm"],
        "attacks": ["pgd", "fgsm", "apgd", "gray_box", "transfer", "ifgsm"],
        "set": {"transfer": {"source": "bnn"}},
    }
    for affinity, stopping in ((None, {"apgd"}), ([], {"pgd", "apgd"}), (["apgd"], {"pgd"})):
        spec = make_spec({**values, "affinity": affinity})
        plan = make_plan(spec, *resolve(spec), some_identity(10), "1")
        crafted = [task for task in plan.tasks.values() if task.kind == "craft"]
        assert {task.attack for task in crafted if task.inputs.stop_early} == stopping
        assert all("stop_early" not in task.inputs.to_json() for task in crafted if task.attack not in stopping)


def test_a_sweep_leaves_transferred_examples_alone() -> None:
    values: dict[str, Any] = {
        "defenses": ["erm", "bnn"],
        "attacks": ["fgsm", "pgd", "transfer", "fmn"],
        "eps": [0.1, 0.2],
        "affinity": ["pgd"],
        "set": {"transfer": {"source": "erm"}},
    }

    def crafts(**more: Any) -> dict[tuple[str, str, float | None], str]:
        spec = make_spec({**values, **more})
        plan = make_plan(spec, *resolve(spec), some_identity(10), "1")
        return {(t.attack, t.source, t.eps): t.key for t in plan.tasks.values() if t.kind == "craft"}

    apart, swept = crafts(), crafts(sweep=True)
    assert {which[0] for which in apart if apart[which] != swept[which]} == {"fgsm"}
    assert make_spec({**values, "affinity": None, "sweep": True}).affinity == ()
    alone = crafts(sweep=True, affinity=[])
    assert {which[0] for which in apart if apart[which] != alone[which]} == {"fgsm", "pgd"}


def plugin_class(module: str, *bases: type, version: str = "") -> type:
    return type("Mine", bases, {"__module__": module, **({"version": version} if version else {})})


@pytest.mark.parametrize(
    ("own", "release", "expected"),
    [
        ("", "3.1", "3.1, PGD 2"),
        ("7", "3.1", "7, PGD 2"),
        ("", "3.1+0123456789ab", "3.1+0123456789ab, PGD 2"),
        ("7", "3.1+0123456789ab", "7+0123456789ab, PGD 2"),
    ],
)
def test_a_third_party_s_version_tells_what_it_inherits_and_its_sources(own: str, release: str, expected: str) -> None:
    pgd = registry().load("attack", "pgd")
    entry = replace(registry().find("attack", "pgd"), distribution="other", version=release)
    mine = plugin_class("other.attacks", pgd, version=own)
    assert plugin_version(mine, entry) == expected
    # A class of its own distribution in between is covered by that one's version.
    assert plugin_version(plugin_class("other.more", mine, version=own), entry) == expected


def test_a_built_in_s_version_is_its_own_alone() -> None:
    for entry in registry().entries("attack"):
        if entry.target.startswith("advbench_attacks."):
            assert re.fullmatch(r"\d+", plugin_version(registry().load("attack", entry.name), entry))


@pytest.mark.parametrize(("affinity", "pairs"), [(("fgsm", "pgd"), 8), (None, 6), (("fgsm",), 6), ((), 4)])
def test_affinity_says_which_attacks_cross(affinity: tuple[str, ...] | None, pairs: int) -> None:
    values = {"defenses": ["erm", "bnn"], "attacks": ["fgsm", "pgd"], "eps": [0.1]}
    spec = make_spec(values if affinity is None else {**values, "affinity": affinity})
    plan = make_plan(spec, *resolve(spec), some_identity(10), "1")
    attacked = [cell for cell in plan.cells if cell.attack]
    assert len(attacked) == pairs
    crossed = {cell.attack.label for cell in attacked if cell.attack and cell.source != cell.defense}
    assert crossed == set(("pgd",) if affinity is None else affinity)
    keys = {cell.key for cell in attacked if cell.attack and cell.attack.label in (*spec.affinity, "fgsm")}
    whole = make_plan(make_spec({**values, "affinity": ("fgsm", "pgd")}), *resolve(spec), plan.identity, "1")  # type: ignore[arg-type]
    # A cell's key does not depend on what else is run, but for whether its examples are crafted to the end.
    assert keys <= {cell.key for cell in whole.cells}


def test_a_part_of_a_specs_run_drops_settings_that_it_has_no_use_for(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(
        'defenses = ["erm", "bnn"]\nattacks = ["pgd", "fgsm"]\naffinity = ["pgd"]\n'
        '[set.bnn]\ninit_from = "erm@start"\n[set."erm@start"]\nstages = [3]\n[set.pgd]\nsteps = 3\n'
    )
    assert set(make(file, defenses=["bnn"]).set) == {"bnn", "erm@start", "pgd"}
    part = make(file, defenses=["erm"], attacks=["fgsm"])
    assert part.set == {}
    assert part.affinity == ()
    assert make(file).affinity == ("pgd",)
    with pytest.raises(InputError, match="unknown label in --set 'pgd'"):
        resolve(make(file, attacks=["fgsm"], set=["pgd.steps=4"]))
    file.write_text(file.read_text().replace("[set.pgd]", "[set.pdg]"))
    with pytest.raises(InputError, match="unknown label in --set 'pdg'"):
        resolve(make(file, defenses=["erm"]))


def test_labels_of_registered_plugins_are_written_with_or_without_the_name() -> None:
    names = {"defenses": ["erm", "bnn@cold"], "attacks": ["pgd@far", "fgsm"], "affinity": ["far"]}
    short = make_spec({**names, "set": {"cold": {"lr": 0.1}, "far": {"steps": 3}}})
    whole = make_spec({**names, "affinity": ["pgd@far"], "set": {"bnn@cold": {"lr": 0.1}, "pgd@far": {"steps": 3}}})
    assert short == whole
    both = make_spec({**names, "set": {"cold": {"lr": 0.1}, "bnn@cold": {"init_std": 0.1}}})
    assert both.set == {"bnn@cold": {"lr": 0.1, "init_std": 0.1}}
    with pytest.raises(InputError, match="unknown label in --set 'warm': expected one of arch, bnn@cold, erm"):
        resolve(make_spec({**names, "set": {"warm": {"lr": 0.1}}}))
    # a registered name, and a label of two plugins, mean no label
    taken = make_spec({"defenses": ["bnn@erm", "erm"], "attacks": ["pgd@a", "fgsm@a"], "set": {"erm": {"lr": 0.1}}})
    assert taken.set == {"erm": {"lr": 0.1}}
    with pytest.raises(InputError, match="unknown label in --set 'a'"):
        resolve(taken.model_copy(update={"set": {"a": {"steps": 1}}}))


@pytest.mark.parametrize("dataset", [entry.name for entry in registry().entries("dataset")])
def test_the_default_net_of_a_data_set_takes_its_images(dataset: str) -> None:
    described = next(entry for entry in registry().entries("dataset") if entry.name == dataset).summary
    size = re.search(r"(\d+)x(\d+)", described)
    if size is None:
        pytest.skip("images of any size")
    channels = 2 if "2 channels" in described else 3 if "colour" in described else 1
    images = torch.zeros((2, channels, int(size[1]), int(size[2])))
    name = make_spec({"dataset": dataset, "defenses": ["erm"], "attacks": ["fgsm"]}).architecture
    with torch.device("meta"):
        net = registry().load("architecture", name)(*images.shape[1:], 10)
    assert net.eval()(images.to("meta")).shape == (2, 10)


def test_a_refused_net_is_not_suggested() -> None:
    for side in (1, 2, 7):
        with pytest.raises(InputError) as error:
            build("small_cnn" if side == 1 else "resnet20", Data(torch.zeros(2, 1, side, side), torch.arange(2), 2), 0)
        names = re.search("choose (.*), or larger", str(error.value))[1].split(" or ")
        for name in names:
            build(name, Data(torch.zeros(2, 1, side, side), torch.arange(2), 2), 0)

"""Images from outside the data: how they are brought into shape, and whether uncertainty finds them out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Cli
from sklearn.metrics import roc_auc_score

from advbench.data.base import Data
from advbench.data.datasets import load_dataset
from advbench.data.ood import NOISE, identify_ood, ood_images
from advbench.errors import InputError
from advbench.evaluation import uncertainty
from advbench.grid.tasks import read_predictions
from advbench.store.records import Store, record_name


@pytest.fixture
def colours(tmp_path: Path) -> str:
    """A data set of 12x10 images, each of one colour."""
    generator = np.random.default_rng(0)
    colour = generator.random((60, 3, 1, 1), np.float32)
    images = np.broadcast_to(colour, (60, 3, 12, 10)).copy()
    labels = np.arange(60) % 3
    np.savez(tmp_path / "c.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    return f"npz:{tmp_path / 'c.npz'}"


def test_colour_becomes_luminance_and_sizes_fit(colours: str) -> None:
    images, _ = load_dataset(colours).test.batch(slice(None))
    grey = ood_images(colours, None, 100, (1, 8, 8), 1.0)
    assert grey.shape == (30, 1, 8, 8)
    expected = 0.299 * images[:, 0, 0, 0] + 0.587 * images[:, 1, 0, 0] + 0.114 * images[:, 2, 0, 0]
    assert torch.allclose(grey[:, 0, 3, 5], expected, atol=1e-6)
    assert torch.allclose(ood_images(colours, None, 7, (3, 12, 10), 5.0).max(), 5 * images.max(), rtol=0.2)
    assert ood_images(colours, None, 7, (3, 12, 10), 1.0).shape == (7, 3, 12, 10)
    assert ood_images("digits", None, 5, (3, 28, 28), 1.0).shape == (5, 3, 28, 28)


def test_channels_that_cannot_fit_are_refused(colours: str) -> None:
    with pytest.raises(InputError, match="1, 3 or 2 channels"):
        ood_images(colours, None, 5, (2, 8, 8), 1.0)


def test_after_normalising_values_are_scaled_in_the_range_from_minus_one_to_one(colours: str) -> None:
    plain = ood_images(colours, None, 7, (3, 12, 10), 1.0)
    scaled = ood_images(colours, None, 7, (3, 12, 10), 5.0, signed=True)
    torch.testing.assert_close((scaled - 0.5) / 0.5, 5 * (plain - 0.5) / 0.5)
    assert torch.allclose(ood_images(colours, None, 7, (3, 12, 10), 1.0, signed=True), plain, atol=1e-6)


def test_noise_has_the_moments_of_its_distribution_and_begins_alike() -> None:
    shape = (1, 8, 8)
    normal, uniform = (ood_images(name, None, 2000, shape, 5.0) for name in ("gaussian", "uniform"))
    assert abs(float(normal.mean())) < 0.05
    assert abs(float(normal.std()) - 5) < 0.05
    assert float(uniform.min()) == pytest.approx(0, abs=0.01)
    assert float(uniform.max()) == pytest.approx(5, abs=0.01)
    assert torch.equal(ood_images("gaussian", None, 10, shape, 5.0), normal[:10])
    signed = ood_images("gaussian", None, 2000, shape, 5.0, signed=True)
    torch.testing.assert_close(2 * signed - 1, normal)
    found = identify_ood(["gaussian", "uniform"], None, 5.0, signed=True)
    assert [(each.label, each.images, each.signed) for each in found] == [(n, 10_000, True) for n in NOISE]
    assert found[0].sha256 != found[1].sha256


def test_a_blurred_point_is_a_gaussian_and_edges_go_on() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[0, 1, 16, 16] = 1.0
    images[1] = 0.7
    own = Data(images, torch.tensor([0, 1]), 2)
    found = ood_images("blurred", None, 2, own.shape, 1.0, own=own)
    rows, columns = torch.meshgrid(torch.arange(-6, 7), torch.arange(-6, 7), indexing="ij")
    expected = torch.exp(-(rows**2 + columns**2) / (2 * 2.0**2))
    torch.testing.assert_close(found[0, 1, 10:23, 10:23], expected / expected.sum())
    assert float(found[0, 1].sum()) == pytest.approx(1)
    assert float(found[0, [0, 2]].abs().max()) == 0
    torch.testing.assert_close(found[1], images[1])
    assert [each.images for each in identify_ood(["blurred"], None, 1.0)] == [10_000]


def test_the_identity_names_content_and_scale_not_the_path(colours: str) -> None:
    (found,) = identify_ood([colours], None, 5.0)
    assert (found.name, found.label, found.images, found.scale) == ("npz", "npz", 30, 5.0)
    assert len(found.sha256) == 64


def test_files_of_one_kind_are_told_apart_by_their_names(colours: str, tmp_path: Path) -> None:
    with np.load(tmp_path / "c.npz") as arrays:
        np.savez(tmp_path / "d.npz", **{name: arrays[name][::-1] for name in arrays})
        (tmp_path / "e").mkdir()
        np.savez(tmp_path / "e" / "c.npz", **{name: arrays[name][::-1] for name in arrays})
    found = identify_ood([colours, f"npz:{tmp_path / 'd.npz'}", "digits"], None, 1.0)
    assert [other.label for other in found] == ["npz:c.npz", "npz:d.npz", "digits"]
    with pytest.raises(InputError, match="different names"):
        identify_ood([colours, f"npz:{tmp_path / 'e' / 'c.npz'}"], None, 1.0)
    with pytest.raises(InputError, match="each data set once"):
        identify_ood([f"npz:{tmp_path / 'd.npz'}", f"npz:{tmp_path / 'e' / 'c.npz'}"], None, 1.0)


def test_notmnist_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte"):
        load_dataset("notmnist", str(tmp_path))


def test_notmnist_is_read_in_mnists_format(tmp_path: Path) -> None:
    raw = tmp_path / "NotMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    (raw / "t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = (np.arange(50) % 10).astype(np.uint8)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (50).to_bytes(4, "big") + labels.tobytes())
    dataset = load_dataset("notmnist", str(tmp_path))
    assert (len(dataset.train) + len(dataset.validation), len(dataset.test)) == (40, 10)
    assert dataset.test.shape == (1, 28, 28)


def test_a_run_judges_whether_uncertainty_finds_foreign_images(cli: Cli, colours: str, tmp_path: Path) -> None:
    arguments = ["run", "--defense", "erm,bnn", "--attack", "fgsm", "--eps", "0.1", "--limit", "40", "--draws", "5"]
    stages = ["--set", "erm.stages=[2]", "--set", "bnn.stages=[2]"]
    done = cli(*arguments, *stages, "--ood", colours, "--ood-scale", "3")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "results" / "uncertainty.csv")
    found = table[table.images == "ood"].set_index("defense")
    assert list(found.index) == ["erm", "bnn"]
    assert (found.attack == "ood:npz").all()
    assert found.ece.isna().all()
    text = (tmp_path / "results" / "leaderboard.md").read_text()
    assert "ood:npz" in text
    # The number in the table is scikit-learn's on the predictions that the store keeps.
    store = Store(str(tmp_path / ".advbench" / "store"))
    records = [store.read_record(Path(name).stem) for name in store.storage.names("records")]
    shown = [r for r in records if r and "foreign" in r["inputs"]]
    assert len(shown) == 2
    for record in shown:
        assert record["inputs"]["foreign"]["scale"] == 3.0
        clean = next(
            r
            for r in records
            if r and r["kind"] == "evaluate" and r["inputs"]["target"] == record["inputs"]["target"]
            and r["inputs"]["examples"] is None and "foreign" not in r["inputs"]
        )  # fmt: skip
        before = uncertainty(read_predictions(store, clean["key"])).total
        after = uncertainty(read_predictions(store, record["key"])).total
        truth = np.repeat([0, 1], [len(before), len(after)])
        auroc = roc_auc_score(truth, np.concatenate([before, after]))
        assert record["result"]["detection"]["total"]["auroc"] == pytest.approx(auroc)
        assert "accuracy" not in record["result"]
    again = cli(*arguments, *stages, "--ood", colours, "--ood-scale", "3")
    assert "nothing to do" in again.stdout
    # One that has left the store is visible, not left out.
    store.storage.remove(record_name(shown[0]["key"]))
    partly = cli("report", "results", "--format", "csv,md")
    assert partly.returncode == 1
    table = pd.read_csv(tmp_path / "results" / "uncertainty.csv")
    assert table[table.images == "ood"].auroc_total.isna().sum() == 1
    assert re.search(r"\| ood:npz +\| n/a ", (tmp_path / "results" / "leaderboard.md").read_text())


def test_an_absent_foreign_data_set_is_one_line_before_any_work(cli: Cli) -> None:
    done = cli("run", "--defense", "erm", "--attack", "fgsm", "--ood", "npz:nowhere.npz")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere.npz" in done.stderr

from __future__ import annotations

import itertools
import pickle
import pwd
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Harmful
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from advbench.data.base import Data, check_images
from advbench.data.datasets import Dataset, data_folder, limited, load_dataset, make_dataset, stratified
from advbench.errors import InputError

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(torch.tensor)


# Digits


def test_digits_have_the_documented_shape_range_and_classes() -> None:
    digits = load_dataset("digits")
    assert digits.name == "digits"
    assert sum(map(len, parts(digits))) == 1_797
    assert len(digits.test) == 1_797 // 5
    assert len(digits.validation) == round(0.1 * (1_797 - 1_797 // 5))
    for part in parts(digits):
        assert part.shape == (1, 8, 8)
        assert (part.classes, part.name) == (10, "digits")
        assert part.images.dtype == torch.float32
        assert part.labels.dtype == torch.int64
        assert (float(part.images.min()), float(part.images.max())) == (0, 1)
        assert sorted(set(part.labels.tolist())) == list(range(10))


def test_splits_of_digits_are_stratified() -> None:
    digits = load_dataset("digits")
    total = Counter(label for part in parts(digits) for label in part.labels.tolist())
    for part in parts(digits):
        counts = Counter(part.labels.tolist())
        assert all(abs(counts[label] - total[label] * len(part) / 1_797) <= 2 for label in range(10))


def test_splits_are_disjoint_and_hold_every_image_once(tmp_path: Path) -> None:
    images = torch.arange(200, dtype=torch.float32).view(200, 1, 1, 1) / 200
    dataset = make_dataset("own", (images[:150], torch.arange(150) % 3), (images[150:], torch.arange(50) % 3))
    values = [sorted(part.images.flatten().tolist()) for part in parts(dataset)]
    assert list(map(len, values)) == [135, 15, 50]
    assert sorted(value for part in values for value in part) == images.flatten().tolist()
    assert values[2] == images[150:].flatten().tolist()


def test_splits_do_not_depend_on_the_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = load_dataset("digits", str(tmp_path / "a"))
    state = torch.manual_seed(2).get_state()
    second = load_dataset("digits", str(tmp_path / "b"))
    assert first is not second
    assert first.digest == second.digest
    assert all(torch.equal(one.images, two.images) for one, two in zip(parts(first), parts(second), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_splits_of_digits_are_the_fixed_ones() -> None:
    digits = load_dataset("digits")
    assert digits.train.labels[:12].tolist() == [0, 1, 3, 4, 5, 7, 8, 0, 1, 2, 5, 6]
    assert digits.validation.labels[:12].tolist() == [6, 0, 3, 9, 1, 9, 4, 9, 9, 7, 6, 3]
    assert digits.test.labels[:12].tolist() == [2, 9, 3, 4, 2, 6, 9, 6, 9, 8, 4, 2]
    assert load_dataset("digits") is digits


@pytest.mark.parametrize("name", ["digits:/some/path", "mnist:3", "cifar10:x"])
def test_path_after_a_data_set_that_takes_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data set '\w+': expected no path after the name, got '[^\n]+'$"):
        load_dataset(name, str(tmp_path))


def test_unknown_data_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"^unknown dataset 'digit': expected one of [^\n]*did you mean 'digits'\?$"):
        load_dataset("digit")


# Stratified subsets


@settings(deadline=None, max_examples=200)
@given(LABELS, st.data())
def test_subset_has_the_right_count_of_unique_ascending_indices(labels: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels)))
    index = stratified(labels, count).tolist()
    assert len(index) == count
    assert index == sorted(set(index))
    assert index[0] >= 0
    assert index[-1] < len(labels)


@settings(deadline=None, max_examples=100)
@given(LABELS)
def test_larger_subset_contains_the_smaller(labels: Tensor) -> None:
    subsets = [set(stratified(labels, count).tolist()) for count in range(1, len(labels) + 1)]
    assert all(small < large for small, large in itertools.pairwise(subsets))


@settings(deadline=None, max_examples=200)
@given(LABELS)
def test_subset_holds_each_class_in_proportion_within_one(labels: Tensor) -> None:
    total = torch.bincount(labels).double()
    for count in range(1, len(labels) + 1):
        found = torch.bincount(labels[stratified(labels, count)], minlength=len(total))
        assert float((found - total * count / len(labels)).abs().max()) <= 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1_000))
def test_subset_of_equal_classes_differs_by_at_most_one_between_them(classes: int, each: int, seed: int) -> None:
    order = torch.randperm(classes * each, generator=torch.Generator().manual_seed(seed))
    labels = (torch.arange(classes * each) % classes)[order]
    for count in range(1, len(labels) + 1):
        found = torch.bincount(labels[stratified(labels, count)], minlength=classes)
        assert int(found.max() - found.min()) <= 1


def test_limit_takes_the_fixed_subset_and_never_more_than_there_is() -> None:
    data = load_dataset("digits").test
    for limit in (None, len(data), len(data) + 1):
        assert limited(data, limit) is data
    few, more = limited(data, 20), limited(data, 40)
    assert (len(few), few.classes, few.name) == (20, 10, "digits")
    assert Counter(few.labels.tolist()) == dict.fromkeys(range(10), 2)
    assert torch.equal(few.images, data.images[stratified(data.labels, 20)])
    kept = {tuple(image.flatten().tolist()) for image in more.images}
    assert all(tuple(image.flatten().tolist()) in kept for image in few.images)


# npz


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 9), (1, 8, 9)),
        ((8, 9, 1), (1, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((1, 8, 9), (1, 8, 9)),
        ((3, 8, 9), (3, 8, 9)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_is_read_in_every_layout(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int], dtype: type
) -> None:
    arrays = npz_arrays(shape, dtype)
    dataset = load_dataset(f"npz:{write_npz(tmp_path, **arrays)}")
    assert [len(part) for part in parts(dataset)] == [36, 4, 20]
    assert all(part.shape == expected and part.classes == 4 for part in parts(dataset))
    assert dataset.test.images.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
    raw = torch.from_numpy(arrays["x_test"][5].astype(np.float32))
    channel_first = raw.permute(2, 0, 1) if shape[-1] in (1, 3) else raw.view(expected)
    assert torch.equal(dataset.test.images[5].float(), channel_first)
    assert dataset.test.labels.tolist() == arrays["y_test"].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("column", [False, True])
def test_npz_takes_labels_of_any_integer_type_and_as_a_column(tmp_path: Path, dtype: type, column: bool) -> None:
    arrays = npz_arrays((8, 8), np.uint8)
    for name in ("y_train", "y_test"):
        arrays[name] = arrays[name].astype(dtype).reshape((-1, 1) if column else -1)
    dataset = load_dataset(f"npz:{write_npz(tmp_path, **arrays)}")
    assert dataset.test.labels.dtype == torch.int64
    assert dataset.test.labels.tolist() == arrays["y_test"].reshape(-1).tolist()


def test_npz_path_may_be_relative_to_the_data_root(tmp_path: Path) -> None:
    path = write_npz(tmp_path, **npz_arrays((8, 8), np.uint8))
    assert load_dataset(f"npz:{path.name}", str(tmp_path)).digest == load_dataset(f"npz:{path}").digest


def test_digest_follows_the_content_and_not_the_path(tmp_path: Path) -> None:
    arrays = npz_arrays((8, 8), np.uint8)
    digests = [load_dataset(f"npz:{write_npz(tmp_path / name, **arrays)}").digest for name in "ab"]
    for name in arrays:
        changed = {**arrays, name: arrays[name].copy()}
        changed[name].flat[0] = (changed[name].flat[0] + 1) % 4
        digests.append(load_dataset(f"npz:{write_npz(tmp_path / name, **changed)}").digest)
    digests.append(load_dataset(f"npz:{write_npz(tmp_path / 'f', **as_float(arrays))}").digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 6


def test_npz_of_pickled_objects_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    arrays = npz_arrays((8, 8), np.uint8)
    arrays["x_train"] = np.array([Harmful(str(harm))] * 2, dtype=object)
    path = write_npz(tmp_path, **arrays)
    with pytest.raises(InputError, match=r"^npz file [^\n]*: expected numeric arrays [^\n]*$"):
        load_dataset(f"npz:{path}")
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Harmful(str(harm))))
    with pytest.raises(InputError, match=r"^npz file [^\n]*$"):
        load_dataset(f"npz:{tmp_path / 'plain.npz'}")
    assert not harm.exists()


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_npz_without_an_array_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    arrays = npz_arrays((8, 8), np.uint8)
    del arrays[name]
    with pytest.raises(InputError, match=rf"^npz file [^\n]*x_train, y_train, x_test, y_test, got [^\n]*{name}"):
        load_dataset(f"npz:{write_npz(tmp_path, **arrays)}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.full((40, 8, 8), 2.0)}, r"training images .*expected values in \[0, 1\], got .*divide by 255"),
        ({"x_test": np.full((20, 8, 8), -0.1)}, r"test images .*expected values in \[0, 1\]"),
        ({"x_test": np.full((20, 8, 8), np.nan)}, r"test images .*expected values in \[0, 1\], got \[nan"),
        ({"x_test": np.zeros((20, 8, 8), np.int64)}, r"x_test .*expected uint8 or floating point, got int64"),
        ({"x_test": np.zeros((20, 8, 8), np.complex64)}, r"expected"),
        ({"x_test": np.full((20, 8, 8), "a")}, r"x_test .*expected"),
        ({"x_train": np.zeros((40, 64), np.uint8)}, r"x_train .*expected 3 or 4 dimensions"),
        ({"x_train": np.zeros((40, 1, 1, 8, 8), np.uint8)}, r"x_train .*expected 3 or 4 dimensions"),
        ({"x_train": np.zeros((39, 8, 8), np.uint8)}, r"training labels .*expected int64 of shape \(39,\)"),
        (
            {"x_test": np.zeros((20, 9, 8), np.uint8)},
            r"test images .*expected the shape of the training images, \(1, 8, 8\), got \(1, 9, 8\)",
        ),
        ({"x_test": np.zeros((20, 3, 8, 8), np.uint8)}, r"test images .*expected"),
        (
            {"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, np.int64)},
            r"expected at least 2 training images and 1 test image, got 40 and 0",
        ),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, np.int64)}, r"got 0 and 20"),
        ({"x_train": np.zeros((1, 8, 8), np.uint8), "y_train": np.zeros(1, np.int64)}, r"got 1 and 20"),
        ({"y_test": np.zeros(20, np.float32)}, r"y_test .*expected integers, got float32"),
        ({"y_test": np.full(20, "a")}, r"y_test .*expected integers"),
        ({"y_test": np.zeros(20, bool)}, r"y_test .*expected integers, got bool"),
        ({"y_test": np.arange(20) - 1}, r"test labels .*expected classes 0\.\."),
        ({"y_test": np.full(20, 2**64 - 1, np.uint64)}, r"test labels .*expected classes 0\.\."),
        ({"y_test": np.zeros((20, 4), np.int64)}, r"test labels .*expected int64 of shape \(20,\)"),
    ],
    ids=lambda value: next(f"{k}-{v.dtype}-{v.shape}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_npz_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, NDArray[Any]], message: str
) -> None:
    path = write_npz(tmp_path, **{**npz_arrays((8, 8), np.uint8), **changes})
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(f"npz:{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 50], ids=["empty", "text", "zip"])
def test_file_that_is_no_npz_is_refused_in_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"^npz file [^\n]*: expected numeric arrays [^\n]*$"):
        load_dataset(f"npz:{path}")


def test_truncated_npz_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_npz(tmp_path, **npz_arrays((8, 8), np.uint8)).read_bytes()
    for number, length in enumerate(range(1, len(whole), len(whole) // 20)):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"^npz file [^\n]*$"):
            load_dataset(f"npz:{path}")


@pytest.mark.parametrize("kind", ["npz", "imagefolder"])
def test_own_data_needs_a_path_that_exists(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=rf"^data set '{kind}': expected {kind}:PATH, got '{kind}'$"):
        load_dataset(kind, str(tmp_path))
    with pytest.raises(InputError, match=rf"^data set '{kind}:/absent/x': expected an existing path, got /absent/x$"):
        load_dataset(f"{kind}:/absent/x", str(tmp_path))
    with pytest.raises(InputError, match=f"got absent/x; it is neither in .* nor in {tmp_path}; .* --data-root$"):
        load_dataset(f"{kind}:absent/x", str(tmp_path))


def npz_arrays(shape: tuple[int, ...], dtype: type) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    pixels = {f"x_{part}": rng.integers(0, 256, (count, *shape)) for part, count in (("train", 40), ("test", 20))}
    images = {name: (x if dtype is np.uint8 else x / 255).astype(dtype) for name, x in pixels.items()}
    return {**images, "y_train": np.arange(40) % 4, "y_test": np.arange(20)[::-1] % 4}


def as_float(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: values / np.float32(255) if name.startswith("x") else values for name, values in arrays.items()}


def write_npz(folder: Path, **arrays: NDArray[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "data.npz"
    np.savez_compressed(path, **arrays)
    return path


# Image folders


def test_imagefolder_with_train_and_test_keeps_the_parts(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / part / name, count, (7, 5), "RGB", 50 * label + (part == "test"))
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert [len(part) for part in parts(dataset)] == [36, 4, 8]
    assert all(part.shape == (3, 5, 7) and part.classes == 2 for part in parts(dataset))
    assert dataset.train.images.dtype == torch.uint8
    for part, offset in ((dataset.train, 0), (dataset.validation, 0), (dataset.test, 1)):
        assert part.images[:, 0, 0, 0].tolist() == [50 * label + offset for label in part.labels.tolist()]


def test_imagefolder_of_one_pool_is_split_by_class(tmp_path: Path) -> None:
    for label, name in enumerate(("a", "b", "c")):
        write_images(tmp_path / name, 20, (8, 8), "L", label)
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert [len(part) for part in parts(dataset)] == [43, 5, 12]
    assert dataset.test.shape == (1, 8, 8)
    assert Counter(dataset.test.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    assert torch.equal(dataset.test.images[:, 0, 0, 0].long(), dataset.test.labels)


def test_imagefolder_with_other_classes_in_test_is_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/dog"):
        write_images(tmp_path / name, 10, (8, 8), "L", 0)
    with pytest.raises(InputError, match=r"expected [^\n]*cat"):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_of_differing_size_are_refused(tmp_path: Path, mode: str) -> None:
    write_images(tmp_path / "a", 10, (8, 8), "RGB", 0)
    write_images(tmp_path / "b", 10, (9, 8), mode, 0)
    with pytest.raises(InputError, match=r"^image [^\n]*b/0\.png: expected the size of [^\n]*8x8, got 8x9"):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("first", ["L", "RGB"])
def test_grey_images_among_colour_ones_become_colour_as_in_torchvision(tmp_path: Path, first: str) -> None:
    write_images(tmp_path / "train" / "a", 10, (8, 8), first, 7)
    write_images(tmp_path / "train" / "b", 10, (8, 8), "L", 9)
    write_images(tmp_path / "test" / "a", 5, (8, 8), "RGB", 7)
    write_images(tmp_path / "test" / "b", 5, (8, 8), "L", 9)
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert all(part.shape == (3, 8, 8) for part in parts(dataset))
    grey = dataset.train.images[dataset.train.labels == 1]
    assert (grey == grey[:, :1]).all(), "each channel is the grey one"
    assert (grey[:, 0, 0, 0] == 9).all()


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints", "__MACOSX", "a/.ipynb_checkpoints"):
        write_images(tmp_path / name, 10, (8, 8), "L", 0)
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    dataset = load_dataset(f"imagefolder:{tmp_path}")
    assert dataset.train.classes == 2
    assert sum(map(len, parts(dataset))) == 20


def test_a_user_without_a_home_keeps_data_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.chdir(tmp_path)
    assert data_folder(None) == tmp_path / ".advbench" / "data"
    assert len(load_dataset.__wrapped__("digits").test) == 359


def test_data_are_described_in_one_line() -> None:
    digits = load_dataset("digits")
    assert repr(digits.test) == "Data('digits', 359 images 1x8x8, float32, 10 classes, cpu)"
    assert repr(digits) == "Dataset('digits', 1294 train, 144 validation, 359 test, 10 classes)"


def test_an_excess_that_no_rounding_shows_is_said() -> None:
    images = torch.full((2, 1, 4, 4), 1 + 2e-7)
    with pytest.raises(InputError, match=r"got \[1, 1\], exceeded by 2\.38e-07; clamp them to \[0, 1\]"):
        check_images(images, "images")
    with pytest.raises(InputError, match=r"got \[0, 255\]; divide by 255"):
        check_images(torch.tensor([[0.0, 255.0]]), "images")


def test_training_and_test_images_of_differing_size_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 10, (8, 8), "L", 0)
    write_images(tmp_path / "test" / "a", 10, (9, 8), "L", 0)
    with pytest.raises(
        InputError, match=r"^image [^\n]*test/a/0\.png: expected the size of [^\n]*train/a/0\.png: 8x8, got 8x9"
    ):
        load_dataset(f"imagefolder:{tmp_path}")


def test_truncated_image_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_images(tmp_path / "whole", 1, (16, 16), "RGB", 200)[0].read_bytes()
    damaged = [b"", b"no image", *(whole[:length] for length in range(1, len(whole) - 40, 11))]
    assert [load_with_damage(tmp_path / str(n), raw) for n, raw in enumerate(damaged)] == ["refused"] * len(damaged)


def test_image_with_a_changed_byte_is_refused_in_one_line_or_read(tmp_path: Path) -> None:
    whole = write_images(tmp_path / "whole", 1, (16, 16), "RGB", 200)[0].read_bytes()
    outcomes = Counter[str]()
    for place in range(60):
        for mask in (0x01, 0x55, 0x80):
            raw = whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
            outcomes[load_with_damage(tmp_path / f"{place}-{mask}", raw)] += 1
    assert set(outcomes) <= {"read", "refused"}
    assert outcomes["refused"] > outcomes["read"]


def load_with_damage(folder: Path, raw: bytes) -> str:
    """Load a folder whose image 3 is `raw`: "read", "refused" with one line that names the image, or that error."""
    damaged = write_images(folder / "a", 5, (16, 16), "RGB", 200)[3]
    damaged.write_bytes(raw)
    try:
        load_dataset(f"imagefolder:{folder}")
    except InputError as error:
        right = str(error).startswith(f"image {damaged}: expected ") and "\n" not in str(error)
        return "refused" if right else str(error)
    return "read"


def test_16_bit_images_keep_their_brightness_or_are_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 65_535, 64).reshape(8, 8).astype(np.uint16)
    (tmp_path / "a").mkdir()
    for number in range(10):
        Image.fromarray(values).save(tmp_path / "a" / f"{number}.png")
    try:
        found = load_dataset(f"imagefolder:{tmp_path}").test.images[0, 0].numpy()
    except InputError:
        found = values / 257
    assert np.abs(found - values / 257).max() <= 1


@pytest.mark.parametrize("layout", [[], ["train"], ["train/a"], ["a"], ["train/a", "test"]])
def test_folder_without_images_is_refused_in_one_line(tmp_path: Path, layout: list[str]) -> None:
    for name in layout:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError, match=r"^image folder [^\n]*: expected one folder of images per class[^\n]*$"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_file_in_place_of_an_image_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a", 1, (8, 8), "L", 0)[0]
    with pytest.raises(InputError, match=r"^image folder [^\n]*$"):
        load_dataset(f"imagefolder:{path}")


def write_images(folder: Path, count: int, size: tuple[int, int], mode: str, value: int) -> list[Path]:
    """Images of one value in their first pixel and noise elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], *([3] if mode == "RGB" else []))).astype(np.uint8)
        pixels[0, 0] = value
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


# Data sets of torchvision


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("mnist", "MNIST"),
        ("fashion_mnist", "FashionMNIST"),
        ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
        ("stl10", "STL10"),
        ("svhn", "SVHN"),
        ("gtsrb", "GTSRB"),
    ],
)
def test_absent_data_names_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cls: str
) -> None:
    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_dataset(name, str(tmp_path / "data"))
    line = str(caught.value)
    assert line.startswith(f"data set {name!r} is not in {tmp_path / 'data'} and cannot be downloaded (")
    assert f"put the files of torchvision.datasets.{cls} into {tmp_path / 'data'}" in line
    assert line.endswith("--data-root")
    assert "\n" not in line
    assert time.monotonic() - start < 10


def test_data_root_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"^data set 'mnist' is not in [^\n]*file/data and cannot be downloaded [^\n]*$"
    ):
        load_dataset("mnist", str(tmp_path / "file" / "data"))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read_as_torchvision_lays_them_out(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (50, 28, 28)), "t10k": rng.integers(0, 256, (20, 28, 28))}
    for part, pixels in images.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(len(pixels)) % 10))
    dataset = load_dataset(name, str(tmp_path))
    assert [len(part) for part in parts(dataset)] == [45, 5, 20]
    assert dataset.test.images.dtype == torch.uint8
    assert dataset.test.images[:, 0].tolist() == images["t10k"].tolist()
    assert dataset.test.labels.tolist() == (np.arange(20) % 10).tolist()


def test_traffic_signs_are_resized_to_32_by_32(tmp_path: Path) -> None:
    train, test = tmp_path / "gtsrb" / "GTSRB" / "Training", tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        (train / f"{label:05d}").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + label, 30 + number), (label, 10, 20)).save(train / f"{label:05d}" / f"{number}.ppm")
        if label < 5:
            Image.new("RGB", (50, 40), (label, 10, 20)).save(test / f"{label:05d}.ppm")
            lines.append(f"{label:05d}.ppm;50;40;0;0;50;40;{label}")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset("gtsrb", str(tmp_path))
    assert [len(part) for part in parts(dataset)] == [116, 13, 5]
    for part in parts(dataset):
        assert part.shape == (3, 32, 32)
        assert part.classes == 43
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)


def test_mnist_is_read_whole(mnist_root: str) -> None:
    mnist = load_dataset("mnist", mnist_root)
    assert [len(part) for part in parts(mnist)] == [54_000, 6_000, 10_000]
    assert all(part.shape == (1, 28, 28) and part.classes == 10 for part in parts(mnist))
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    images, labels = mnist.test.batch(slice(100))
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max()), len(labels)) == (0, 1, 100)
    share = torch.bincount(mnist.validation.labels) - torch.bincount(mnist.train.labels) / 9
    assert float(share.abs().max()) <= 2


def idx(values: NDArray[Any]) -> bytes:
    """The IDX format of MNIST: magic number with type and rank, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def parts(dataset: Dataset) -> tuple[Data, Data, Data]:
    return dataset.train, dataset.validation, dataset.test


def test_colour_images_are_brought_to_channels_first_whatever_torchvisions_class_holds() -> None:
    """CIFAR holds (N, 32, 32, 3) and a list of targets; SVHN and STL-10 hold (N, 3, H, W) and an array of labels."""
    from types import SimpleNamespace

    from advbench.data.loaders import _arrays

    pixels = np.arange(2 * 32 * 32 * 3, dtype=np.uint64).reshape(2, 32, 32, 3).astype(np.uint8)
    cifar = _arrays(SimpleNamespace(data=pixels, targets=[3, 1]), None)
    svhn = _arrays(SimpleNamespace(data=pixels.transpose(0, 3, 1, 2), labels=np.array([3, 1])), None)
    for images, labels in (cifar, svhn):
        assert images.shape == (2, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert images[1, 2, 5, 7] == pixels[1, 5, 7, 2]
        assert labels.tolist() == [3, 1]
        assert labels.dtype == torch.int64

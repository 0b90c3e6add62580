"""Data sets by name, with fixed train, validation and test splits and an identity that goes into keys."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbench.api import Data
from advbench.errors import InputError
from advbench.registry import registry

DEFAULT_ROOT = Path("~/.cache/advbench/data")
VALIDATION_FRACTION = 0.1
_SPLIT_SEED = 20_190_501


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed splits.

    Attributes:
        name: the registered name.
        train: what trainings see.
        validation: held out of the training images, for choices.
        test: what attacks and evaluations see.
        digest: SHA-256 of images and labels of all splits: the data's identity.
    """

    name: str
    train: Data
    validation: Data
    test: Data
    digest: str


@functools.lru_cache(maxsize=4)
def load_dataset(name: str, root: str | None = None) -> Dataset:
    """Load a data set, downloading it into `root` where torchvision can.

    Args:
        name: a registered data set; `imagefolder:PATH` and `npz:PATH` read the user's own.
        root: the folder that holds data sets, as torchvision lays them out.

    Raises:
        InputError: unknown name, or data that is absent or malformed; says what to put where.
    """
    kind, _, path = name.partition(":")
    load = registry().load("dataset", kind)
    folder = Path(root) if root else DEFAULT_ROOT
    dataset: Dataset = load(folder.expanduser(), path)
    return dataset


def make_dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int | None = None
) -> Dataset:
    """A data set from its official training and test parts; a tenth of the former becomes validation.

    Args:
        name: its name.
        train: images `(count, channels, height, width)`, uint8 or float32 in [0, 1], and labels `(count,)`.
        test: likewise.
        classes: how many classes; by default the largest label plus one.

    Raises:
        InputError: images outside [0, 1], labels outside the classes, shapes that disagree, or too few images.
    """
    if len(train[0]) < 2 or len(test[0]) < 1:
        raise InputError(
            f"data set {name!r}",
            expected="at least 2 training images and 1 test image",
            got=f"{len(train[0])} and {len(test[0])}",
        )
    if train[0].shape[1:] != test[0].shape[1:]:
        raise InputError(
            f"test images of {name}",
            expected=f"the training images' shape {tuple(train[0].shape[1:])}",
            got=tuple(test[0].shape[1:]),
        )
    if classes is None:
        classes = max(int(labels.max()) if len(labels) else 0 for _, labels in (train, test)) + 1
    if classes > 100_000:
        raise InputError(f"labels of {name}", expected="classes numbered from 0, at most 100,000", got=classes - 1)
    digest = hashlib.sha256(f"{name.partition(':')[0]}/{classes}".encode())
    for part, (images, labels) in (("training", train), ("test", test)):
        check_images(images, f"{part} images of {name}")
        check_labels(labels, len(images), classes, f"{part} labels of {name}")
        digest.update(f"{images.dtype}{tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    held_out = stratified(train[1], max(1, round(VALIDATION_FRACTION * len(train[1]))))
    kept = torch.ones(len(train[1]), dtype=torch.bool)
    kept[held_out] = False
    return Dataset(
        name=name,
        train=Data(train[0][kept], train[1][kept], classes, name),
        validation=Data(train[0][held_out], train[1][held_out], classes, name),
        test=Data(*test, classes, name),
        digest=digest.hexdigest(),
    )


def stratified(labels: Tensor, count: int) -> Tensor:
    """The indices, ascending, of one fixed subset that holds each class in proportion, within one image.

    A subset of n is contained in that of n + 1, so a larger limit only adds images. Whose turn it is follows
    Tijdeman 1980, "The chairman assignment problem"; which of a class's images comes next is a fixed shuffle.

    Args:
        labels: `(total,)`, int64.
        count: how many; at least 1, at most all.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED)).numpy()
    _, member, sizes = np.unique(labels.numpy()[order], return_inverse=True, return_counts=True)
    total, least = len(labels), max(1, 2 * len(sizes) - 2)
    taken = np.zeros_like(sizes)
    for step in range(1, count + 1):
        due = least * (step * sizes - taken * total)  # in units of 1 / (least * total) images
        deadline = np.where(due >= total, ((least - 1) * total - due) / sizes, np.inf)
        taken[deadline.argmin()] += 1
    chosen = [order[member == label][:number] for label, number in enumerate(taken)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def limited(data: Data, limit: int | None) -> Data:
    """The fixed stratified subset of `limit` images; all of them without a limit or beyond their number."""
    if limit is None or limit >= len(data):
        return data
    index = stratified(data.labels, limit)
    return Data(data.images[index], data.labels[index], data.classes, data.name)


def check_images(images: Tensor, what: str) -> None:
    """Refuse anything but images `(count, ...)`, uint8 or floating in [0, 1].

    Raises:
        InputError: says which of these does not hold.
    """
    if not isinstance(images, Tensor) or images.ndim < 2:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(what, expected="a tensor (count, channels, height, width)", got=got)
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise InputError(what, expected="floating point in [0, 1]", got=images.dtype)
    if images.numel():
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise InputError(
                what,
                expected="values in [0, 1]",
                got=f"[{low:g}, {high:g}]",
                remedy="divide by 255, and normalise inside the model",
            )


def check_labels(labels: Tensor, count: int, classes: int | None, what: str) -> None:
    """Refuse anything but `count` integer labels in 0..classes-1.

    Raises:
        InputError: says which of these does not hold.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (count,):
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(what, expected=f"int64 of shape ({count},)", got=got)
    if count and classes is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        got = f"{int(labels.min())}..{int(labels.max())}"
        raise InputError(what, expected=f"classes 0..{classes - 1}", got=got)


# Loaders: (root, path) -> Dataset


def load_digits(root: Path, path: str) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, split 80/20 by class; pixel values 0..16 become [0, 1]."""
    from sklearn.datasets import load_digits as load

    _no_path("digits", path)
    bunch = load()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    return _split_pool("digits", images, torch.from_numpy(bunch.target).long())


def _split_pool(name: str, images: Tensor, labels: Tensor) -> Dataset:
    """A data set from one pool of images, of which a fixed stratified fifth is the test set."""
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified(labels, max(1, len(labels) // 5))] = True
    return make_dataset(name, (images[~test], labels[~test]), (images[test], labels[test]))


def load_mnist(root: Path, path: str) -> Dataset:
    """MNIST, 60,000 + 10,000."""
    return _torchvision("mnist", "MNIST", root, path, {"train": True}, {"train": False})


def load_notmnist(root: Path, path: str) -> Dataset:
    """Letters A to J of notMNIST: the 10,000 of `NotMNIST/raw/t10k-*-ubyte`, MNIST's format, split 80/20 by class."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    _no_path("notmnist", path)
    folder = root / "NotMNIST" / "raw"
    try:
        images = read_image_file(str(folder / "t10k-images-idx3-ubyte"))
        labels = read_label_file(str(folder / "t10k-labels-idx1-ubyte"))
    except Exception as error:  # torchvision asserts what it reads
        raise InputError(
            f"data set 'notmnist' cannot be read from {folder} ({type(error).__name__})",
            remedy="put t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte there, or name the root with --data-root",
        ) from error
    return _split_pool("notmnist", images.unsqueeze(1), labels)


def load_fashion_mnist(root: Path, path: str) -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000."""
    return _torchvision("fashion_mnist", "FashionMNIST", root, path, {"train": True}, {"train": False})


def load_cifar10(root: Path, path: str) -> Dataset:
    """CIFAR-10, 50,000 + 10,000."""
    return _torchvision("cifar10", "CIFAR10", root, path, {"train": True}, {"train": False})


def load_cifar100(root: Path, path: str) -> Dataset:
    """CIFAR-100, 50,000 + 10,000."""
    return _torchvision("cifar100", "CIFAR100", root, path, {"train": True}, {"train": False})


def load_stl10(root: Path, path: str) -> Dataset:
    """STL-10's labelled part, 5,000 + 8,000."""
    return _torchvision("stl10", "STL10", root, path, {"split": "train"}, {"split": "test"})


def load_svhn(root: Path, path: str) -> Dataset:
    """SVHN, 73,257 + 26,032."""
    return _torchvision("svhn", "SVHN", root, path, {"split": "train"}, {"split": "test"})


def load_gtsrb(root: Path, path: str) -> Dataset:
    """German traffic signs, 26,640 + 12,630, resized to 32x32 (bilinear)."""
    return _torchvision("gtsrb", "GTSRB", root, path, {"split": "train"}, {"split": "test"}, size=32, classes=43)


def _torchvision(
    name: str,
    cls: str,
    root: Path,
    path: str,
    train: dict[str, Any],
    test: dict[str, Any],
    *,
    size: int | None = None,
    classes: int | None = None,
) -> Dataset:
    import torchvision

    _no_path(name, path)
    make = getattr(torchvision.datasets, cls)
    parts = []
    for which in (train, test):
        try:
            parts.append(make(root, download=False, **which))
        except Exception:
            try:
                root.mkdir(parents=True, exist_ok=True)
                parts.append(make(root, download=True, **which))
            except Exception as error:
                raise InputError(
                    f"data set {name!r} is not in {root} and cannot be downloaded ({type(error).__name__})",
                    remedy=f"put the files of torchvision.datasets.{cls} into {root} as torchvision lays "
                    "them out, or name their folder with --data-root",
                ) from error
    return make_dataset(name, _arrays(parts[0], size), _arrays(parts[1], size), classes)


def _arrays(part: Any, size: int | None) -> tuple[Tensor, Tensor]:
    """Images `(count, channels, height, width)`, uint8, and labels of a torchvision data set."""
    raw = getattr(part, "data", None)
    if raw is None:
        return _decode([item[0] for item in part._samples], [item[1] for item in part._samples], size)
    targets = part.targets if hasattr(part, "targets") else part.labels
    images = torch.as_tensor(np.asarray(raw))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(np.asarray(targets)).long()


def _decode(files: list[str], labels: list[int], size: int | None) -> tuple[Tensor, Tensor]:
    from PIL import Image

    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                mode = image.mode
                rgb = image.convert("L" if mode in ("1", "L") else "RGB")
        except Exception as error:  # Pillow signals damage with several types
            raise InputError(f"image {file}", expected="a readable image", got=str(error)) from error
        if mode.startswith(("I", "F")):
            raise InputError(f"image {file}", expected="8 bits a channel", got=f"mode {mode}")
        if size is not None:
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
        array = np.asarray(rgb)
        images.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        if images[-1].shape != images[0].shape:
            raise InputError(
                f"image {file}",
                expected="the size and mode of {}: {}x{}x{}".format(files[0], *images[0].shape),
                got="{}x{}x{}".format(*images[-1].shape),
                remedy="resize the images to one size first",
            )
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def load_imagefolder(root: Path, path: str) -> Dataset:
    """The user's images: PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/* split 80/20 by class."""
    folder = _own_path("imagefolder", path, root)
    if not (folder / "train").is_dir():
        files, labels, _ = _class_folders(folder)
        return _split_pool(f"imagefolder:{path}", *_decode(files, labels, None))
    parts = [_class_folders(folder / part) for part in ("train", "test")]
    if parts[0][2] != parts[1][2]:
        differing = sorted(set(parts[0][2]) ^ set(parts[1][2]))
        raise InputError(
            f"image folder {folder}",
            expected="the same class folders in train and test",
            got=f"only in one of them: {', '.join(differing)}",
        )
    train, test = (_decode(files, labels, None) for files, labels, _ in parts)
    return make_dataset(f"imagefolder:{path}", train, test, len(parts[0][2]))


def _class_folders(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """Files, their labels, and the names of the classes."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"image folder {folder}", expected="one folder a class with images in it", got=str(error)
        ) from error
    return [file for file, _ in found.samples], [label for _, label in found.samples], found.classes


def load_npz(root: Path, path: str) -> Dataset:
    """The user's arrays: x_train, y_train, x_test, y_test; never unpickled.

    Images are uint8 or floating in [0, 1], `(count, height, width)`, `(count, channels, height, width)` or,
    where the last axis is 1 or 3 and the second is not, channels last.
    """
    file = _own_path("npz", path, root)
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except Exception as error:
        raise InputError(
            f"npz file {file}",
            expected=f"numeric arrays {', '.join(names)}",
            got=f"{type(error).__name__}: {error}",
        ) from error
    parts = []
    for part in ("train", "test"):
        raw = arrays[f"x_{part}"]
        if raw.dtype.kind != "f" and raw.dtype != np.uint8:
            raise InputError(f"x_{part} of {file}", expected="uint8 or floating point", got=raw.dtype)
        images = torch.from_numpy(np.ascontiguousarray(raw, np.uint8 if raw.dtype == np.uint8 else np.float32))
        if images.ndim == 3:
            images = images.unsqueeze(1)
        elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.permute(0, 3, 1, 2).contiguous()
        if images.ndim != 4:
            raise InputError(f"x_{part} of {file}", expected="3 or 4 dimensions", got=tuple(images.shape))
        labels = arrays[f"y_{part}"].reshape(-1)
        if labels.dtype.kind not in "iu":
            raise InputError(f"y_{part} of {file}", expected="integers", got=labels.dtype)
        parts.append((images, torch.from_numpy(labels.astype(np.int64))))
    return make_dataset(f"npz:{path}", parts[0], parts[1])


def _no_path(name: str, path: str) -> None:
    if path:
        raise InputError(f"data set {name!r}", expected="no path after the name", got=repr(path))


def _own_path(kind: str, path: str, root: Path) -> Path:
    if not path:
        raise InputError(f"data set {kind!r}", expected=f"{kind}:PATH", got=repr(kind))
    given = Path(path).expanduser()
    found = given if given.exists() else root / given
    if not found.exists():
        raise InputError(f"data set '{kind}:{path}'", expected="an existing path", got=str(given))
    return found

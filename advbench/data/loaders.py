"""Loaders of the built-in data sets and of the user's own images, all with the signature `(root, path)`."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.data.base import Data
from advbench.data.datasets import Dataset, make_dataset, stratified
from advbench.errors import InputError


def load_digits(root: Path, path: str) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, in a stratified 80/20 split; pixel values 0..16 become [0, 1]."""
    _no_path("digits", path)
    found = importlib.util.find_spec("sklearn")
    assert found is not None, "scikit-learn is a dependency"
    # The file is read directly: importing scikit-learn takes longer than all else in a small run.
    with gzip.open(Path(str(found.origin)).parent / "datasets" / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8)) / 16
    return _split_pool("digits", images, torch.from_numpy(table[:, -1].astype(np.int64)))


def _split_pool(name: str, images: Tensor, labels: Tensor) -> Dataset:
    """Build a data set from one pool of images; a fixed stratified fifth is the test part."""
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified(labels, max(1, len(labels) // 5))] = True
    return make_dataset(name, (images[~test], labels[~test]), (images[test], labels[test]))


def load_toy2d(root: Path, path: str) -> Dataset:
    """Two classes of 10 points from N((-2, -2), 0.3) and N((2, 2), 0.3) (APD section 5.1, its released code's numbers).

    A point of the square [-5, 5]^2 is an image of 1x1 pixels and 2 channels in [0, 1], so noise from U(0, 1)
    (`ood="uniform"`) covers the square of APD's Figure 2. Validation holds 10 points a class, the test set 500.
    """
    _no_path("toy2d", path)
    generator = torch.Generator().manual_seed(0)
    counts = {"train": 10, "validation": 10, "test": 500}
    parts = {}
    for part, count in counts.items():
        labels = torch.arange(2 * count) % 2
        points = 2.0 * (2 * labels[:, None] - 1) + 0.3**0.5 * torch.randn((2 * count, 2), generator=generator)
        parts[part] = Data((points.clamp(-5, 5) + 5).div(10).view(-1, 2, 1, 1), labels, 2, "toy2d")
    digest = hashlib.sha256(b"toy2d/2")
    for data in parts.values():
        digest.update(data.images.numpy().tobytes() + data.labels.numpy().tobytes())
    return Dataset("toy2d", **parts, digest=digest.hexdigest())


def load_mnist(root: Path, path: str) -> Dataset:
    """MNIST, 60,000 training and 10,000 test images."""
    return _torchvision("mnist", "MNIST", root, path, {"train": True}, {"train": False})


def load_notmnist(root: Path, path: str) -> Dataset:
    """notMNIST, letters A to J: 10,000 images of `NotMNIST/raw/t10k-*-ubyte`, in a stratified 80/20 split."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    _no_path("notmnist", path)
    folder = root / "NotMNIST" / "raw"
    try:
        images = read_image_file(str(folder / "t10k-images-idx3-ubyte"))
        labels = read_label_file(str(folder / "t10k-labels-idx1-ubyte"))
    except Exception as error:  # torchvision uses assert on malformed files
        raise InputError(
            f"data set 'notmnist' cannot be read from {folder} ({type(error).__name__})",
            remedy="put t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte there, or set the root with --data-root",
        ) from error
    return _split_pool("notmnist", images.unsqueeze(1), labels)


def load_fashion_mnist(root: Path, path: str) -> Dataset:
    """Fashion-MNIST, 60,000 training and 10,000 test images."""
    return _torchvision("fashion_mnist", "FashionMNIST", root, path, {"train": True}, {"train": False})


def load_cifar10(root: Path, path: str) -> Dataset:
    """CIFAR-10, 50,000 training and 10,000 test images."""
    return _torchvision("cifar10", "CIFAR10", root, path, {"train": True}, {"train": False})


def load_cifar100(root: Path, path: str) -> Dataset:
    """CIFAR-100, 50,000 training and 10,000 test images."""
    return _torchvision("cifar100", "CIFAR100", root, path, {"train": True}, {"train": False})


def load_stl10(root: Path, path: str) -> Dataset:
    """The labelled part of STL-10, 5,000 training and 8,000 test images."""
    return _torchvision("stl10", "STL10", root, path, {"split": "train"}, {"split": "test"})


def load_svhn(root: Path, path: str) -> Dataset:
    """SVHN, 73,257 training and 26,032 test images."""
    return _torchvision("svhn", "SVHN", root, path, {"split": "train"}, {"split": "test"})


def load_gtsrb(root: Path, path: str) -> Dataset:
    """German traffic signs (GTSRB), 26,640 training and 12,630 test images, resized to 32x32 (bilinear)."""
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
                    remedy=f"put the files of torchvision.datasets.{cls} into {root} in torchvision's layout, "
                    "or set their folder with --data-root",
                ) from error
    return make_dataset(name, _arrays(parts[0], size), _arrays(parts[1], size), classes)


def _arrays(part: Any, size: int | None) -> tuple[Tensor, Tensor]:
    """Images `(count, channels, height, width)`, uint8, and labels of a data set of torchvision."""
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
    """Read images and labels; if some images are grey and others in colour, all become RGB, as in torchvision."""
    from PIL import Image

    images: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                mode = image.mode
                rgb = image.convert("L" if mode in ("1", "L") else "RGB")
        except Exception as error:  # Pillow raises several types for damaged files
            raise InputError(f"image {file}", expected="a readable image", got=str(error)) from error
        if mode.startswith(("I", "F")):
            raise InputError(f"image {file}", expected="8 bits per channel", got=f"mode {mode}")
        if size is not None:
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
        array = np.asarray(rgb)
        images.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise InputError(
                f"image {file}",
                expected="the size of {}: {}x{}".format(files[0], *images[0].shape[1:]),
                got="{}x{}".format(*images[-1].shape[1:]),
                remedy="resize all images to the same size",
            )
    channels = max(len(image) for image in images)
    images = [image if len(image) == channels else np.repeat(image, channels, axis=0) for image in images]
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def load_imagefolder(root: Path, path: str) -> Dataset:
    """The user's image files: PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/* in a stratified 80/20 split."""
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
            got=f"{', '.join(differing)} in one of them only",
        )
    count = len(parts[0][0])  # decoded together, so that both parts get the same channels
    images, targets = _decode(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1], None)
    train, test = (images[:count], targets[:count]), (images[count:], targets[count:])
    return make_dataset(f"imagefolder:{path}", train, test, len(parts[0][2]))


def _class_folders(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """Image files, their labels, and the class names; hidden folders and those of archivers are ignored."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    def hidden(name: str) -> bool:
        return name.startswith((".", "__MACOSX"))

    class Visible(ImageFolder):  # type: ignore[misc]
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            names = sorted(each.name for each in Path(directory).iterdir() if each.is_dir() and not hidden(each.name))
            if not names:
                raise FileNotFoundError(f"no class folders in {directory}")
            return names, {name: index for index, name in enumerate(names)}

    def is_image(file: str) -> bool:
        inside = Path(file).relative_to(folder).parts
        return not any(map(hidden, inside)) and bool(has_file_allowed_extension(file, IMG_EXTENSIONS))

    try:
        found = Visible(folder, is_valid_file=is_image)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"image folder {folder}", expected="one folder of images per class", got=str(error)) from error
    return [file for file, _ in found.samples], [label for _, label in found.samples], found.classes


def load_npz(root: Path, path: str) -> Dataset:
    """The user's arrays x_train, y_train, x_test, y_test in an npz file, read without pickle.

    Images are uint8 or floating point in [0, 1], `(count, height, width)`, `(count, channels, height, width)` or,
    channels last if the last axis is 1 or 3 and the second is not.
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
    given = Path(os.path.expanduser(path))
    found = given if os.path.exists(given) else root / given
    if not (os.path.isfile(found) or os.path.isdir(found)):  # opening a pipe would block
        expected, got, remedy = "an existing path", str(given), ""
        if os.path.exists(found):
            expected, got = "a file or folder", "a device or pipe"
        elif not given.is_absolute():
            remedy = f"it is neither in the current folder nor in {root}; set another with --data-root"
        raise InputError(f"data set '{kind}:{path}'", expected=expected, got=got, remedy=remedy)
    return found

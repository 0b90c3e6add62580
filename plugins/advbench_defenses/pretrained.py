"""Pretrained nets with weights from files."""

from __future__ import annotations

import copy
import io
from collections.abc import Collection, Mapping
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from advbench import training
from advbench.errors import InputError, out_of_memory
from advbench.models import (
    Classifier,
    DropoutNoise,
    GaussianNoise,
    Normalize,
    check_trained,
    export_classifier,
    is_random,
    load_classifier,
    mixture,
)
from advbench.progress import Progress
from advbench.registry import pinned
from advbench.training import Data, Defense, Field, Files, TrainContext, check_data, check_fit

NESTED = ("state_dict", "model_state_dict", "model")  # keys of the state dict in checkpoints
PREFIXES = ("module.", "_orig_mod.")  # added to names by nn.DataParallel and torch.compile
FEW = 3  # maximum number of names in an error
Member = tuple[dict[str, Tensor], dict[str, Any]]


class Pretrained(Defense):
    """Pretrained weights of the net named by `--arch`; nothing is trained.

    One file of weights gives a deterministic net. Several give an ensemble, whose members are enumerated in evaluations
    and in attacks that average over draws. With a file of standard deviations for each file of weights, the weights are
    the means of a Gaussian posterior over all parameters. Noise inside the net can be added: Gaussian as in `rse`, or
    dropout as in `mc_dropout` for a net whose dropout is off in evaluation mode. A net that draws random numbers itself
    in evaluation mode must be declared by `random`, which is verified.

    Files are safetensors, or a state dict saved by `torch.save`, possibly inside a dict under `state_dict`,
    `model_state_dict` or `model`; they are read without unpickling code. A prefix `module.` or `_orig_mod.` of all
    names is removed. Results depend on the SHA-256 of the files, not on their paths.

    The input of the net is images in [0, 1]. `channel_mean` and `channel_std` normalise them for a net trained on
    normalised images; weights of a net built by advbench include the normalisation. The net runs in evaluation mode.
    """

    version = "2"

    class Params(training.Params):
        """Hyperparameters of a pretrained net."""

        weights: Files = Field(
            min_length=1,
            description="file of the net's weights, .safetensors, .pt or .pth; several files give an ensemble",
        )
        std: Files = Field(
            default=(),
            description="file of the standard deviations of the weights, under the same names; one for each "
            "file of `weights`",
        )
        channel_mean: tuple[float, ...] = Field(
            default=(), description="mean of each channel, subtracted from images in [0, 1]; by default none"
        )
        channel_std: tuple[float, ...] = Field(
            default=(), description="standard deviation of each channel, which divides centred images; by default none"
        )
        first_std: float = Field(
            default=0.0, ge=0, description="standard deviation of noise on the images, for pixels in [0, 1]; as in rse"
        )
        inner_std: float = Field(
            default=0.0,
            ge=0,
            description="standard deviation of noise before each convolution but the first, in units of its input; as "
            "in rse",
        )
        dropout: float = Field(
            default=0.0,
            ge=0,
            lt=1,
            description="dropout rate of the net's dropout layers, or else of the inputs of its linear layers; as in "
            "mc_dropout",
        )
        random: bool = Field(
            default=False, description="true for a net that draws random numbers itself in evaluation mode"
        )

    params: Params

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> Params:
        """The hyperparameters, verified to be consistent.

        Raises:
            InputError: they are inconsistent, or a file is missing.
        """
        if not values.get("weights") and values.keys() <= {*cls.Params.model_fields, "preset"}:
            remedy = "use --set pretrained.weights=my.safetensors, and --arch for the net"
            raise InputError("weights of Pretrained", expected="a file, or a list of files", got="none", remedy=remedy)
        own = super().resolve(values, dataset)
        assert isinstance(own, cls.Params)
        for place, name in enumerate(own.weights):
            if name in own.weights[:place]:
                raise InputError(
                    "weights of Pretrained", expected="files with different content", got=pinned.shown(name)
                )
        if own.std and len(own.std) != len(own.weights):
            raise InputError(
                "number of files in std of Pretrained", expected=f"{len(own.weights)}, as in weights", got=len(own.std)
            )
        kinds = {
            "dropout": own.dropout > 0,
            "first_std or inner_std": max(own.first_std, own.inner_std) > 0,
            "random": own.random,
        }
        given = [kind for kind, is_given in kinds.items() if is_given]
        if len(given) > 1:
            raise InputError("noise of Pretrained", expected="one kind of noise", got=" and ".join(given))
        if any(std <= 0 for std in own.channel_std):
            raise InputError("channel_std of Pretrained", expected="numbers > 0", got=list(own.channel_std))
        return own

    def passes_per_image(self) -> float:
        """Zero: nothing is trained."""
        return 0.0

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Load the weights into a copy of the module; its own weights are not used, and the data only for checks.

        Raises:
            InputError: a file has changed since its digest was computed, has other content, or does not match the net;
                or the declaration `random` is wrong.
        """
        check_data(module, data)
        method, context = self.for_dataset(data.name), context or TrainContext()
        check_fit(copy.deepcopy(module).cpu(), data, "cpu", random=True)
        nets = [_Net(module, context.net) for _ in method.params.weights]
        members = [method.member(net, place, data) for place, net in enumerate(nets)]
        own = copy.deepcopy(module).cpu()
        clf = mixture(own, members) if members[1:] else load_classifier(own, *members[0])
        clf = clf.requires_grad_(False).to(context.resources.device)
        check_trained("pretrained", clf, data)
        x, y = data.batch(slice(256))
        with torch.no_grad(), clf.isolated():
            right = clf.at(clf.draw(0), x.to(context.resources.device)).argmax(1).cpu() == y.cpu()
        context.progress(Progress(1, 1, {"train accuracy": float(right.float().mean())}))
        return clf

    def member(self, net: _Net, place: int, data: Data) -> Member:
        """Exported classifier of one file of weights."""
        params = self.params
        name = params.weights[place]
        net.load(_state(name), pinned.shown(name), params.channel_mean, params.channel_std)
        drawn = is_random(net.whole.eval(), data)
        if drawn and not params.random:
            raise InputError(
                f"net with the weights {pinned.shown(name)}",
                expected="a net that is deterministic in evaluation mode, unless declared random",
                got="passes that differ",
                remedy="declare it: --set pretrained.random=true",
            )
        if params.random and not drawn:
            off = any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in net.whole.modules())
            hint = "; its dropout layers are off in evaluation mode: --set pretrained.dropout=RATE keeps them on"
            raise InputError(
                f"net with the weights {pinned.shown(name)}",
                expected="a net that draws random numbers in evaluation mode, as declared",
                got="equal passes",
                remedy="omit --set pretrained.random" + (hint if off else ""),
            )
        tensors, values = export_classifier(Classifier(net.whole))
        if params.std:
            of = pinned.shown(params.std[place])
            deviations = net.deviations(_state(params.std[place]), of)
            values["posterior"] = "gaussian"
            tensors = {n.replace("value.", "mean.", 1): tensor for n, tensor in tensors.items()} | deviations
        values["noise"] = params.random or self._noise()
        return tensors, values

    def _noise(self) -> dict[str, Any] | bool:
        params = self.params
        if params.dropout:
            return {"kind": "dropout", **DropoutNoise(params.dropout).values()}
        if params.first_std or params.inner_std:
            return {"kind": "gaussian", **GaussianNoise(params.first_std, params.inner_std).values()}
        return False


class _Net:
    """A copy of a net on the CPU, possibly with normalisation in front of it.

    Attributes:
        whole: the net.
        name: its name for messages.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self.whole = copy.deepcopy(module).cpu()
        self._normalize: Normalize | None = None
        self._inner, self._prefix = self.whole, ""
        if isinstance(self.whole, nn.Sequential) and len(self.whole) == 2 and isinstance(self.whole[0], Normalize):
            self._normalize, self._inner, self._prefix = self.whole[0], self.whole[1], "1."

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], path: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Load a state dict: that of a net built by advbench, or of the net inside."""
        inside, everything = self._inner.state_dict().keys(), self.whole.state_dict().keys()
        state = _bare(state, inside | everything)
        brings = state.keys() <= everything and not state.keys() <= inside
        target = self.whole if brings else self._inner
        if (mean or std) and (brings or self._normalize is None):
            why = "these weights include their own" if brings else "this architecture normalises by itself"
            raise InputError("channel_mean or channel_std of Pretrained", expected=f"none ({why})", got="some")
        if self._normalize is not None and not brings:
            for buffer, values in ((self._normalize.mean, mean), (self._normalize.std, std)):
                if values and len(values) != buffer.numel():
                    expected = f"{buffer.numel()} numbers, one per channel"
                    raise InputError("channel_mean or channel_std of Pretrained", expected=expected, got=len(values))
            self._normalize.mean.copy_(torch.tensor(mean or 0.0).view(-1, 1, 1))
            self._normalize.std.copy_(torch.tensor(std or 1.0).view(-1, 1, 1))
        known = target.state_dict()
        counters = {name for name in known if name.endswith("num_batches_tracked")}
        remedy = (
            "name the net of these weights: --arch or --set LABEL.arch=path/to/net.py:FUNCTION; its hyperparameters "
            "are set by --set LABEL.arch.NAME=VALUE"
        )
        _check_fits(state, known, path, counters, f"the weights of {self.name}", remedy)
        try:
            target.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            got = str(error).splitlines()[-1].strip()
            raise InputError(f"weights {path}", expected=f"weights of {type(target).__name__}", got=got) from error
        differing = [name for name, tensor in target.state_dict().items() if not _holds(tensor, state.get(name))]
        if differing:
            got = f"different values of {_few(differing)}"
            raise InputError(f"weights {path}", expected="equal values of tied weights", got=got)

    def deviations(self, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
        """Log standard deviation of each parameter, in the export format of a Gaussian posterior."""
        known = dict(self._inner.named_parameters())
        everything = self._inner.state_dict()
        state = _bare(state, everything.keys())
        if self._prefix and state and all(name.startswith(self._prefix) for name in state):
            state = {name.removeprefix(self._prefix): tensor for name, tensor in state.items()}
        unneeded = everything.keys() - known.keys()
        expected, remedy = f"a number for each weight of {self.name}", "use 0 for deterministic weights"
        _check_fits(state, everything, path, unneeded, expected, remedy)
        for name in known:
            if not bool((state[name] >= 0).all() & state[name].isfinite().all()):
                raise InputError(
                    f"standard deviation of {name} in {path}", expected="finite numbers >= 0", got="others"
                )
        return {f"log_std.{self._prefix}{name}": state[name].to(each).log() for name, each in known.items()}


def _holds(own: Tensor, given: Tensor | None) -> bool:
    return given is None or torch.equal(own, given.to(own))


def _bare(state: Mapping[str, Tensor], known: Collection[str]) -> Mapping[str, Tensor]:
    """Remove the prefixes of wrappers from the names of a state dict."""
    for prefix in PREFIXES * 2:  # in any order
        if state and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in known):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_fits(
    state: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    path: str,
    unneeded: Collection[str],
    expected: str,
    remedy: str,
) -> None:
    """Raise for weights of another net.

    Raises:
        InputError: names are missing or unexpected, or shapes or types differ.
    """
    missing = [name for name in known if name not in state and name not in unneeded]
    unexpected = [name for name in state if name not in known]
    both = [name for name in known if name in state]
    reshaped = [
        f"{name} of {tuple(state[name].shape)} for {tuple(known[name].shape)}"
        for name in both
        if state[name].shape != known[name].shape
    ]
    kinds = {name for name in both if state[name].is_floating_point() != known[name].is_floating_point()}
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": reshaped,
        "of another type": [f"{name} of {state[name].dtype}" for name in both if name in kinds],
    }
    faults = "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in found.items() if names)
    if faults:
        raise InputError(f"file {path}", expected=expected, got=faults, remedy=remedy)


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if names[FEW:] else "")


def _state(name: str) -> dict[str, Tensor]:
    """Read the state dict of a file.

    Raises:
        InputError: the file has other content.
    """
    raw, path = pinned.content(name), pinned.shown(name)
    expected = "tensors by name, as written by safetensors or torch.save(net.state_dict(), ...)"
    try:
        if raw[8:9] == b"{":  # follows the header length of a safetensors file
            return safetensors.torch.load(raw)
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        got = "a file that would run code when unpickled" if "nsupported" in str(error) else "an unreadable file"
        remedy = "save net.state_dict(), not the net" if "nsupported" in str(error) else ""
        raise InputError(f"file {path}", expected=expected, got=got, remedy=remedy) from error
    except Exception as error:  # malformed bytes may raise anything
        if out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        got = f"an unreadable file ({reason})" if isinstance(error, RuntimeError) and reason else "an unreadable file"
        raise InputError(f"file {path}", expected=expected, got=got) from error
    nested = [key for key in NESTED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
    if nested:
        found = found[nested[0]]
    if not isinstance(found, Mapping):
        raise InputError(f"file {path}", expected=expected, got=f"a {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            got = f"{key!r} of type {type(value).__name__} among {_few(list(map(str, found)))}"
            remedy = f"a nested state dict must have one of the keys {', '.join(NESTED)}"
            raise InputError(f"file {path}", expected=expected, got=got, remedy=remedy)
    if not found:
        raise InputError(f"file {path}", expected=expected, got="none")
    return dict(found)

"""Weights to start from: tensors of a file that fit an encoder are loaded, and one line says so.

Names are compared below a prefix such as `module.backbone.`, and shapes have to be equal. Two
tensors are fitted to the encoder's: the first convolution, in channels and in size, and a timm
transformer's table of positions, in size. The line names each guess. Weights of another network are
refused: those of ResNet-50 have three quarters of ResNet-18's names and shapes.
"""

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from simclr_pl.core.errors import UserError, check
from simclr_pl.protocols.weight_files import Weights, check_finite, published_weights

if TYPE_CHECKING:
    from simclr_pl.core.model.simclr import SimCLR

PREFIXES = frozenset({"module", "model", "backbone", "encoder", "encoder_q", "base_encoder"})
"""What wrappers, and other packages' models, have in front of an encoder's names.

DDP; Lightning modules; lightly, solo-learn and sthalles' SimCLR; SupContrast and SimSiam; MoCo's
query encoder, v1 and v2, and v3. Momentum encoders are no such: nobody's published weights are.
"""

_COUNTS = "num_batches_tracked"
"""A buffer that batch norm counts in, which older files lack and nothing depends on."""

POSITIONS = "pos_embed"
"""timm's name of a transformer's table of positions."""

_SHOWN = 3
"""Names that the line gives of each kind."""


class Match(NamedTuple):
    """The tensors of some weights that fit an encoder, and those that don't.

    Attributes:
        taken: tensors for the encoder, by its names and in its shapes.
        fitted: which of them were fitted to another shape, in words.
        resized: whether the first convolution has another kernel size: the network isn't quite the
            one that was trained.
        absent: why each of the encoder's other tensors keeps its value, in words.
        misshapen: number of those tensors that the file has in another shape.
        unused: names of the file's other tensors: of a classifier, of a momentum encoder.
        prefix: of the names in the file.
    """

    taken: dict[str, Tensor]
    fitted: str
    resized: bool
    absent: list[str]
    misshapen: int
    unused: list[str]
    prefix: str

    @property
    def found(self) -> int:
        """Number of the encoder's tensors that the file has."""
        return sum(not name.endswith(_COUNTS) for name in self.taken)

    @property
    def of_another_network(self) -> bool:
        """Whether more than a quarter of the tensors is absent, or more than a tenth misshapen."""
        total = self.found + len(self.absent)
        return len(self.absent) > total / 4 or self.misshapen > total / 10

    @property
    def share(self) -> str:
        """`60 of the 62 tensors`."""
        return f"{self.found} of the {self.found + len(self.absent)} tensors"

    def line(self) -> str:
        """Says what matched and what did not."""
        below = f" below '{self.prefix}'" if self.prefix else ""
        parts = [f"{self.share} of the encoder start from it{below}{self.fitted}"]
        if self.absent:
            parts.append(f"{len(self.absent)} stay as initialised ({_some(self.absent)})")
        if self.unused:
            parts.append(f"{len(self.unused)} in the file are not used ({_some(self.unused)})")
        return "; ".join(parts)


def start_encoder(encoder: nn.Module, weights: Weights, network: str) -> str:
    """Loads the weights that fit into an encoder, in place.

    Args:
        encoder: as it was initialised.
        weights: of an encoder like it, perhaps with a head, or in a larger model.
        network: the encoder's name, for errors.

    Returns:
        The line that says what matched and what did not.

    Raises:
        UserError: another network's; numbers that are not finite.
    """
    match = compare(encoder, weights)
    if match.of_another_network:
        raise UserError(
            f"{weights.name} holds another network than {network}: it has {match.share} of the "
            f"encoder ({_some(match.absent)}), and {_some(match.unused) or 'nothing'} beside them. "
            "Give weights of this encoder, or choose model.encoder and encoder_args like theirs"
        )
    load(encoder, match, weights.name)
    return f"start weights from {weights.name}: {match.line()}"


def start_model(model: "SimCLR", weights: Weights) -> None:
    """Starts a model's encoder from some weights; rank 0 says what matched.

    Raises:
        UserError: as `start_encoder`.
    """
    line = start_encoder(model.encoder, weights, model.spec.name)
    if model.trainer.is_global_zero:
        sys.stdout.write(f"{line}\n")


def pretrained(model: "SimCLR") -> None:
    """Starts a model from the weights of its encoder's library, as `pretrained: true` asks for.

    Args:
        model: built, and not trained.

    Raises:
        UserError: as `published_weights` and `start_encoder`; another value than true.
    """
    wanted = "true or false: weights of a file are given by --init_from FILE"
    check(model.pretrained is True, "model.encoder_args.pretrained", model.pretrained, wanted)
    start_model(model, published_of(model.encoder, model.spec.name, model.spec.args))
    model.pretrained = None


def published_of(encoder: nn.Module, name: str, args: dict[str, Any]) -> Weights:
    """The pretrained weights of a network that one of the libraries built.

    Raises:
        UserError: as `published_weights`; another class's.
    """
    library = type(encoder).__module__.partition(".")[0]
    if library not in ("torchvision", "timm"):
        raise UserError(
            f"{name} is no network of torchvision or timm, which have the pretrained weights: "
            "give a file of weights"
        )
    return published_weights(library, name, args)


def load(encoder: nn.Module, match: Match, source: str) -> None:
    """Loads what matched, in place.

    Raises:
        UserError: numbers that are not finite.
    """
    check_finite(match.taken.values(), source)
    encoder.load_state_dict(match.taken, strict=False)


def compare(encoder: nn.Module, weights: Weights) -> Match:
    """Finds the names of an encoder among those of some weights.

    Of several prefixes below which there are such names, the one with the most is taken.
    """
    own, tensors = encoder.state_dict(), weights.tensors
    first = _first_convolution(encoder)

    def count(found: tuple[str, dict[str, str]]) -> int:
        known = ((name, there) for name, there in found[1].items() if name in own)
        return sum(own[name].shape == tensors[there].shape for name, there in known)

    prefix, names = max(_renamed(encoder, tensors), key=count)
    taken, absent, fitted, resized, misshapen = {}, [], [], False, 0
    for name, value in own.items():
        if name not in names:
            if not name.endswith(_COUNTS):
                absent.append(f"{name} is not there")
            continue
        tensor = given = tensors[names[name]]
        if name == first:
            tensor = _convolution(given, value)
        elif name == POSITIONS:
            tensor = _positions(encoder, given, value)
        if tensor.shape != value.shape:
            misshapen += 1
            absent.append(f"{name} is {[*given.shape]} there and {[*value.shape]} here")
            continue
        taken[name] = tensor
        if tensor.shape != given.shape:
            resized |= name == first and tensor.shape[2:] != given.shape[2:]
            fitted.append(f"{name}, {[*given.shape]} there, is fitted to {[*value.shape]}")
    used = {names[name] for name in taken}
    unused = [n for n in tensors if n not in used and not n.endswith(_COUNTS)]
    words = f" ({'; '.join(fitted)})" if fitted else ""
    return Match(taken, words, resized, absent, misshapen, unused, prefix)


def _renamed(
    encoder: nn.Module, tensors: dict[str, Tensor]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Prefixes of a file's names, and the names below each as the encoder may have them.

    Numbers are those of the encoder's children, in their order: tutorials cut a classifier off by
    `nn.Sequential(*list(resnet.children())[:-1])`.
    """
    found: dict[str, dict[str, str]] = {"": {}}
    for name in tensors:
        prefix, rest = "", name
        while True:
            found.setdefault(prefix, {})[rest] = name
            word, _, below = rest.partition(".")
            if word not in PREFIXES or not below:
                break
            prefix, rest = f"{prefix}{word}.", below
    yield from found.items()
    children = [name for name, _ in encoder.named_children()]
    for prefix, names in found.items():
        numbered = {}
        for name, there in names.items():
            number, _, rest = name.partition(".")
            if number.isdecimal() and int(number) < len(children):
                numbered[f"{children[int(number)]}.{rest}"] = there
        yield prefix, numbered


def _first_convolution(encoder: nn.Module) -> str:
    convolutions = (n for n, part in encoder.named_modules() if isinstance(part, nn.Conv2d))
    return f"{next(convolutions, '')}.weight"


def _convolution(weight: Tensor, wanted: Tensor) -> Tensor:
    """A first convolution's weight with the wanted channels and kernel size, where that is known.

    The kernel is resampled so that it answers to images as it did to larger ones (Beyer et al.
    2023, FlexiViT), which is what a 3x3 stem for small images is to do. On digits, features of a
    frozen ResNet were better so than with the middle of its 7x7 kernel, and than with a fresh stem.
    One channel gets the sum over red, green and blue; more get them in turn, rescaled, as in timm.
    """
    if weight.dim() != 4 or wanted.dim() != 4 or len(weight) != len(wanted):
        return weight
    from timm.layers.patch_embed import resample_patch_embed  # late: timm takes seconds
    from timm.models import adapt_input_conv

    size, channels = [*wanted.shape[2:]], wanted.shape[1]
    if [*weight.shape[2:]] != size:
        weight = resample_patch_embed(weight.float(), size)
    if weight.shape[1] == 3 != channels:
        weight = adapt_input_conv(channels, weight)
    return weight


def _positions(encoder: nn.Module, table: Tensor, wanted: Tensor) -> Tensor:
    """A table of positions `[1, N, D]` with the wanted number, where the network is timm's.

    timm's own function resamples the square grid of patches (bicubic, antialiased), and leaves the
    positions of class and register tokens as they are.
    """
    grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    if grid is None or not type(encoder).__module__.startswith("timm.") or table.dim() != 3:
        return table
    tokens = wanted.shape[1] - math.prod(grid)
    side = math.isqrt(max(table.shape[1] - tokens, 0))
    if tokens < 0 or side**2 + tokens != table.shape[1]:
        return table
    from timm.layers.pos_embed import resample_abs_pos_embed  # late: timm takes seconds

    resampled: Tensor = resample_abs_pos_embed(table, [*grid], [side, side], tokens)
    return resampled


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])

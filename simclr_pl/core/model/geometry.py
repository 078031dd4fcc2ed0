"""What images a network takes: channels, size and statistics, from data or from a checkpoint."""

from typing import Any, NamedTuple

from simclr_pl.core.errors import UserError


class Geometry(NamedTuple):
    """What a network is trained on: what its checkpoints say of images.

    Attributes:
        channels: image channels.
        image_size: image side S in pixels.
        mean: of each channel, on a scale of 0 to 1.
        std: of each channel, likewise.
        range: the numbers that are 0 and 1; `None` for 8 bits, which are 0 to 255.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, float] | None = None


def geometry_of(data: Any) -> Geometry | None:
    """What a data module says of its images; `None` where it doesn't, or there is none."""
    channels, size, mean, std, bounds = (getattr(data, name, None) for name in Geometry._fields)
    if channels is None or size is None or mean is None or std is None:
        return None
    return Geometry(channels, size, tuple(mean), tuple(std), bounds)


def geometry_in(about: dict[str, Any]) -> Geometry:
    """What a checkpoint says of the images that its encoder was trained on.

    Args:
        about: from `describe`.
    """
    statistics = tuple(about["mean"]), tuple(about["std"]), about.get("range")
    return Geometry(about["encoder"]["channels"], about["image_size"], *statistics)


def check_channels(network: Geometry, data: Geometry | None) -> None:
    """Whether a network that is there already takes such images; any size and statistics may do.

    Raises:
        UserError: images of other channels.
    """
    if data is not None and data.channels != network.channels:
        raise UserError(
            f"the images have {data.channels} channel{'s'[: data.channels != 1]}, but this model "
            f"was built for {network.channels}: use data with as many, or a new model"
        )

"""Image -> array: one size, each channel by the training images' own mean and deviation.

An image has no rate, no leads that may be missing and no hours, so nothing of `signal` is asked of
it but what the common path needs: the `shape` that a model is built for, arrays to look at, the
places that can be judged, and a map in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ecgad.prepare.signal import Preparation, Prepared

IMAGES = "images"


@dataclass(frozen=True, eq=False)
class Image:
    """A picture as it stands in its file."""

    pixels: np.ndarray  # (c, h, w)
    image_id: str
    source_sha256: str = ""  # of what was read


@dataclass(frozen=True)
class ImagePreparation:
    """How images become arrays; stored in the model's card, which thereby says what it is of."""

    shape: tuple[int, int, int]  # (c, h, w) that the model was built for
    mean: tuple[float, ...]  # of each channel, over the training images
    deviation: tuple[float, ...]
    smooth_px: float = 1.0  # deviation of the Gaussian over a map; 4 of 256 pixels are usual
    kind: str = IMAGES

    group: ClassVar[str] = "all images"  # nothing of an image is lost: one calibration group

    def __post_init__(self) -> None:
        if not len(self.shape) == 3 or min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}; channels, height and width are needed")
        if not len(self.mean) == len(self.deviation) == self.shape[0] or min(self.deviation) <= 0:
            raise ValueError(
                f"mean {self.mean} and deviation {self.deviation}; one number for each of "
                f"{self.shape[0]} channels, and deviations above 0"
            )

    @classmethod
    def of(cls, images: Iterable[Image]) -> ImagePreparation:
        """The one that images to learn from give. Raises `ValueError` when all are one colour."""
        pixels = np.stack([image.pixels for image in images]).astype(np.float64)  # (n, c, h, w)
        mean, deviation = (f(axis=(0, 2, 3)).tolist() for f in (pixels.mean, pixels.std))
        channels, height, width = pixels.shape[1:]
        return cls((channels, height, width), tuple(mean), tuple(deviation))

    @property
    def words(self) -> str:
        return f"images of {' x '.join(map(str, self.shape))}"


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as the model sees it."""

    windows: np.ndarray  # (1, c, h, w) float32: the whole of it
    valid: np.ndarray  # (c, h, w) bool: all of it
    source: str = ""

    def joined(self, maps: np.ndarray) -> np.ndarray:
        """The map (m, h, w) of the image, from those of its windows (1, m, h, w)."""
        return maps[0]


AnyPreparation = Preparation | ImagePreparation
AnyPrepared = Prepared | PreparedImage


def prepare_image(image: Image, preparation: ImagePreparation) -> PreparedImage:
    """Raises `ValueError` for another shape than the preparation's, and for what is not finite."""
    if image.pixels.shape != preparation.shape:
        raise ValueError(
            f"image {image.image_id} is of shape {image.pixels.shape}; the model is for "
            f"{preparation.shape}"
        )
    mean, deviation = (
        np.array(v)[:, None, None] for v in (preparation.mean, preparation.deviation)
    )
    pixels = ((image.pixels - mean) / deviation).astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError(f"image {image.image_id} holds NaN or infinite values")
    source = image.source_sha256 and f"{image.image_id} {image.source_sha256}"
    return PreparedImage(pixels[None], np.ones(pixels.shape, bool), source)


def shrunk(x: np.ndarray, size: int) -> np.ndarray:
    """(.., h, w) to (.., size, size) by the means of blocks.

    Raises `ValueError` unless h and w are the same multiple of `size`.
    """
    height, width = x.shape[-2:]
    if height != width or height % size:
        raise ValueError(f"{height} x {width} pixels do not fall into {size} x {size} blocks")
    block = height // size
    return x.reshape(*x.shape[:-2], size, block, size, block).mean((-3, -1))


def preparation_of(card: Mapping[str, Any]) -> AnyPreparation:
    """The preparation that stands in a model's card."""
    fields = tuples(card["preparation"])
    return ImagePreparation(**fields) if fields.get("kind") == IMAGES else Preparation(**fields)


def smoothing(preparation: AnyPreparation, seconds: float) -> float:
    """Deviation of the Gaussian over a map, in its places: of an image, its preparation's own."""
    if isinstance(preparation, ImagePreparation):
        return preparation.smooth_px
    return seconds * preparation.rate_hz


def tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with tuples again where JSON made lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}

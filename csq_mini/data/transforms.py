"""How images are augmented for training, and prepared for the model."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..check import number, whole


@dataclass(frozen=True)
class CropFlip:
    """A random square crop of the zero-padded bytes, flipped horizontally with probability 1/2.

    Source: He et al. (arXiv 1512.03385), section 4.2.
    """

    size: int  # height and width of the crop, in pixels
    pad: int = 0  # zeros added on each side, in pixels

    def __post_init__(self) -> None:
        whole("size", self.size, 1), whole("pad", self.pad)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip each image of the batch at random, drawing from a CPU generator."""
        return self.apply(x, self.draw(x.shape, generator))

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Top, left and flip (0 or 1) for each image of a batch of this shape: ``[batch, 3]`` int64 on the CPU."""
        places = [side + 2 * self.pad - self.size + 1 for side in shape[2:]]
        if len(shape) != 4 or min(places) < 1:
            raise ValueError(f"no crop of {self.size} pixels fits into images {list(shape)} padded by {self.pad}")
        top, left = (torch.randint(count, shape[:1], generator=generator) for count in places)
        flip = torch.rand(shape[:1], generator=generator) < 0.5
        return torch.stack([top, left, flip.long()], dim=1)

    def apply(self, x: Tensor, drawn: Tensor) -> Tensor:
        """The images cropped and flipped as was drawn for each of them."""
        batch, channels = x.shape[:2]
        height, width = (side + 2 * self.pad for side in x.shape[2:])
        top, left, flip = drawn.to(x.device).view(batch, 3, 1, 1).unbind(1)  # each [batch, 1, 1]
        image, step = torch.arange(batch, device=x.device)[:, None, None], torch.arange(self.size, device=x.device)
        rows, columns = top + step[:, None], left + torch.where(flip > 0, self.size - 1 - step, step)
        pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[self.pad] * 4)).reshape(-1, channels)
        # a gather of whole pixels, which lie together in channels_last: each is one short run of bytes
        cropped = pixels.index_select(0, ((image * height + rows) * width + columns).flatten())
        return cropped.view(batch, self.size, self.size, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Normalise:
    """Bytes 0..255 become (byte / 255 - mean) / std, float32."""

    mean: tuple[float, ...]  # one number a channel
    std: tuple[float, ...]
    crop: int | None = None  # take the centre square of this many pixels first; None takes the whole image

    def __post_init__(self) -> None:
        means, stds = ([number(name, v, low) for v in values] for name, values, low in
                       (("mean", self.mean, 0), ("std", self.std, 1e-6)))  # fmt: skip
        if not len(means) == len(stds) > 0:
            raise ValueError(f"mean and std must have one number a channel each, got {len(means)} and {len(stds)}")

    def __call__(self, x: Tensor) -> Tensor:
        """The batch as the model sees it."""
        if x.ndim != 4 or x.shape[1] != len(self.mean) or min(x.shape[2:]) < (self.crop or 1):
            raise ValueError(f"images {list(x.shape)} do not fit {self}: they must be [batch, channels, height, width]")
        if self.crop is not None:
            top, left = (round((side - self.crop) / 2) for side in x.shape[2:])
            x = x[:, :, top : top + self.crop, left : left + self.crop]
        mean, std = _per_channel(self.mean, x.device), _per_channel(self.std, x.device)
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)  # copied to each device once, not with every batch
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return 255 * torch.tensor(values, device=device).view(-1, 1, 1)

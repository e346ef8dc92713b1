"""A U-Net for defects: images in, a logit per pixel out; and the loss it is trained by.

Ronneberger, Fischer and Brox, MICCAI 2015, with batch norm and padded convolutions, so that the output has the size of
the input. The encoder is learnt, or a frozen backbone whose maps serve as skip connections.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from anomalib_lite.supervised.networks import in_float32

# Deviation of the Gaussian over predicted logits, share of the side: that of PatchCore's maps (Roth et al., CVPR
# 2022). Pixels that a network wrongly takes for good lie beside others that it does not.
_SMOOTHING = 4 / 224


class UNet(nn.Module):
    """Encoder, decoder and skip connections between them.

    Parameters
    ----------
    depth : int
        Halvings of the resolution on the way down; images have to be a multiple of 2^depth. Not used with `encoder`.
    width : int
        Channels at full resolution, doubled with every halving; with `encoder`, of the finest decoder stage.
    encoder : optional
        A network that returns feature maps (n, c, h, w) of several resolutions. Its parameters are frozen.
    encoder_channels : channels of those maps, in the order they are returned.
    """

    def __init__(
        self,
        *,
        depth: int = 4,
        width: int = 16,
        encoder: nn.Module | None = None,
        encoder_channels: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        if encoder is None:
            channels = [width << level for level in range(depth + 1)]
            self.down = nn.ModuleList(
                _Convolutions(inner, outer) for inner, outer in zip([3, *channels], channels, strict=False)
            )
            finest_widths: list[int] = []
        else:
            encoder.requires_grad_(False)
            channels = list(encoder_channels)
            self.down = nn.ModuleList()
            finest_widths = [2 * width, width]  # two doublings more, without skips: from stride 8 to stride 2
        stages = []
        below = channels[-1]
        for skip in reversed(channels[:-1]):
            stages.append(_Convolutions(below + skip, min(skip, 8 * width)))
            below = min(skip, 8 * width)
        self.up = nn.ModuleList(stages)
        extra = []
        for outer in finest_widths:
            extra.append(_Convolutions(below, outer))
            below = outer
        self.finest = nn.ModuleList(extra)
        self.last = nn.Conv2d(below, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 1, h, w) of standardised images (n, 3, h, w)."""
        maps = self._encoded(images)
        current = maps.pop()
        for stage in self.up:
            skip = maps.pop()
            current = stage(torch.cat([F.interpolate(current, size=skip.shape[-2:], mode="nearest"), skip], dim=1))
        for stage in self.finest:
            current = stage(F.interpolate(current, scale_factor=2.0, mode="nearest"))
        if current.shape[-2:] == images.shape[-2:]:
            return in_float32(self.last, current)
        return F.interpolate(
            in_float32(self.last, current), size=images.shape[-2:], mode="bilinear", align_corners=False
        )

    def train(self, mode: bool = True) -> UNet:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def _encoded(self, images: Tensor) -> list[Tensor]:
        """Maps, the finest first."""
        if self.encoder is not None:
            with torch.no_grad():
                maps = self.encoder(images)
            return sorted(maps, key=lambda features: -features.shape[-1])
        maps = []
        current = images
        for level, stage in enumerate(self.down):
            current = stage(F.max_pool2d(current, 2) if level else current)
            maps.append(current)
        return maps


class _Convolutions(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for inner in (inputs, outputs):
            layers += [nn.Conv2d(inner, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
        super().__init__(*layers)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy plus one minus the soft Dice coefficient of the batch (Milletari et al., V-Net, 3DV 2016).

    Cross-entropy alone is content with no defect anywhere, defects being few pixels; Dice alone is blind on good
    images.
    """
    logits = logits.float()
    predicted = torch.sigmoid(logits)
    overlap = (predicted * masks).sum()
    # One pixel more on both sides: defined without defects.
    dice = (2 * overlap + 1) / (predicted.sum() + masks.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - dice


def smoothed(logits: Tensor) -> Tensor:
    """Logits (n, 1, h, w) averaged with their neighbours by a Gaussian, as anomaly maps are."""
    deviation = _SMOOTHING * logits.shape[-1]
    radius = min(math.ceil(3 * deviation), min(logits.shape[-2:]) - 1)  # the border is mirrored, at most once
    return gaussian_blur(logits.float(), [2 * radius + 1] * 2, [deviation] * 2)

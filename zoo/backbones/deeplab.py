"""DeepLabv3+ (Chen et al., ECCV 2018): an encoder that sees at two scales, and a decoder back to the image's size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import DataError

ENCODER = "encoder."  # begins the names of the encoder's tensors


class DeepLabV3Plus(nn.Module):
    """Images (B, 3, H, W) to maps (B, outputs, H, W), for H and W of any size from the encoder's stride upwards.

    Attributes:
        encoder: makes two maps of features of an image, a fine and a coarse one.
        decoder: what a task has of its own, however many modules it is made of.
        stride: pixels of the image to one of the coarse map.
        pretrained_cfg: the encoder's card, as timm's networks have it, on which the decoder is the task's.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, stride: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.stride = encoder, decoder, stride
        card = dict(getattr(encoder, "pretrained_cfg", None) or {})
        card.pop("first_conv", None)
        self.pretrained_cfg = card | {"classifier": "decoder"}

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if not torch.compiler.is_compiling() and min(height, width) < self.stride:
            raise DataError(
                f"An image of {height}×{width} pixels is smaller than the network's stride, {self.stride}; enlarge it."
            )
        fine, coarse = self.encoder(images)
        maps: Tensor = self.decoder(fine, coarse, (height, width))
        return maps


class Decoder(nn.Module):
    """Atrous spatial pyramid pooling of the coarse features, refined by the fine ones; separable convolutions (Fig. 2).

    Args:
        fine, coarse: channels of the features.
        rates: dilations of the pyramid's 3×3 convolutions; the paper's at stride 16 are 6, 12 and 18.
        width: channels inside; the paper's are 256.
        fine_width: channels that the fine features are reduced to; the paper's are 48.
    """

    def __init__(
        self, fine: int, coarse: int, rates: tuple[int, ...] = (6, 12, 18), width: int = 256, fine_width: int = 48
    ) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList(
            [_block(coarse, width, 1), *(_separable(coarse, width, dilation=rate) for rate in rates)]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(coarse, width, 1), nn.ReLU())
        self.project = _block(width * (len(rates) + 2), width, 1)
        self.reduce = _block(fine, fine_width, 1)
        self.refine = nn.Sequential(_separable(width + fine_width, width), _separable(width, width))
        self.output = nn.Conv2d(width, 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor, size: tuple[int, int]) -> Tensor:
        branches = [branch(coarse) for branch in self.pyramid]
        branches.append(self.pooled(coarse).expand(-1, -1, *coarse.shape[-2:]))
        x = self.project(torch.cat(branches, 1))  # (B, width, H / stride, W / stride)
        x = torch.cat([_enlarge(x, fine.shape[-2:]), self.reduce(fine)], 1)
        return _enlarge(self.output(self.refine(x)), size)  # (B, outputs, H, W)


def _enlarge(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _block(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def _separable(c_in: int, c_out: int, dilation: int = 1) -> nn.Sequential:
    """A depthwise 3×3 convolution and a pointwise one, a norm after each."""
    depthwise = nn.Conv2d(c_in, c_in, 3, padding=dilation, dilation=dilation, groups=c_in, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(c_in), nn.ReLU(), *_block(c_in, c_out, 1))


def deeplab(architecture: str) -> DeepLabV3Plus:
    """DeepLabv3+ on a convolutional network of timm's, by its name there: features at strides 4 and 16.

    What lies beyond stride 16 is dilated in place of being strided, so that its weights see what they were trained on.
    """
    import timm

    encoder: Any = timm.create_model(architecture, features_only=True, output_stride=16)
    strides = encoder.feature_info.reduction()
    levels = (strides.index(4), len(strides) - 1)
    encoder = timm.create_model(architecture, features_only=True, output_stride=16, out_indices=levels)
    return DeepLabV3Plus(encoder, Decoder(*encoder.feature_info.channels()), encoder.feature_info.reduction()[-1])


def deeplab_resnet20() -> DeepLabV3Plus:
    """A small one on resnet20, for images of some 64×96 pixels: features at strides 1 and 4."""
    from zoo.backbones.resnet_cifar import CifarEncoder

    return DeepLabV3Plus(CifarEncoder(3), Decoder(16, 64, (2, 4, 6), width=32, fine_width=16), stride=4)

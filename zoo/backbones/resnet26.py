"""ResNet-26 for images of 64 pixels, the backbone of residual adapters (Rebuffi et al., CVPR 2018, Section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; where channels double, the shortcut is pooled to half and padded with zero channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.halves = c_in != c_out
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=2 if self.halves else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.halves:
            x = F.avg_pool2d(x, 2, ceil_mode=True)  # as the convolution rounds where a side is odd
            x = torch.cat([x, torch.zeros_like(x)], 1)  # (B, C_out, H / 2, W / 2)
        return F.relu(x + y)


class ResNet26(nn.Module):
    """Three macro blocks of 64, 128 and 256 channels, of four residual blocks each; (B, 3, H, W) to (B, classes).

    Post-activation. With the stem of 32 channels, every macro block doubles the channels and halves the resolution.

    Args:
        width: factor on all channels; the paper's range is 0.5 to 2.5 (Fig. 4a).
    """

    def __init__(self, width: float = 1.0, num_classes: int = 1000) -> None:
        super().__init__()
        stem, *widths = (int(c * width) for c in (32, 64, 128, 256))
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = nn.Sequential()
        for c_in, c_out in zip([stem, *widths], widths, strict=False):
            self.stages.append(nn.Sequential(BasicBlock(c_in, c_out), *(BasicBlock(c_out, c_out) for _ in range(3))))
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stages(x)  # (B, C, H / 8, W / 8)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

"""The CIFAR ResNets of He et al. 2016 (Section 4.2), with parameter-free shortcuts (option A)."""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut subsamples and pads with zero channels where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.new_channels = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        x = x[:, :, :: self.stride, :: self.stride]
        x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))  # (B, C_out, H / stride, W / stride)
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of 16, 32 and 64 channels; images (B, 3, H, W) to logits (B, classes).

    Made for 32×32 pixels. resnet20 has 269,072 parameters beside its head.
    """

    def __init__(self, n: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, n)
        self.layer2 = self._stage(16, 32, 2, n)
        self.layer3 = self._stage(32, 64, 2, n)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.levels(x)[-1].mean((2, 3)))
        return logits

    def levels(self, x: Tensor) -> list[Tensor]:
        """The features after each stage: (B, 16, H, W), (B, 32, H / 2, W / 2) and (B, 64, H / 4, W / 4)."""
        fine = self.layer1(F.relu(self.bn1(self.conv1(x))))
        middle = self.layer2(fine)
        return [fine, middle, self.layer3(middle)]

    @staticmethod
    def _stage(c_in: int, c_out: int, stride: int, n: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(c_in, c_out, stride), *(BasicBlock(c_out, c_out, 1) for _ in range(n - 1)))


class CifarEncoder(CifarResNet):
    """The same without its classifier: images to the features of the first stage and of the last."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        del self.fc

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return self.levels(x)[::2]


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 for 32×32 images."""
    return CifarResNet(3, num_classes)

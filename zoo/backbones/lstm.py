"""A recurrent network for clips."""

from __future__ import annotations

from torch import Tensor, nn


class LSTMClassifier(nn.Module):
    """Frames as they are, one after another, into an LSTM of one layer; its last output into the head.

    Clips (B, T, C, H, W) to logits (B, classes).

    Args:
        inputs: numbers in a frame, C·H·W.
        hidden: of the LSTM.
    """

    def __init__(self, inputs: int, hidden: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x.flatten(2))  # (B, T, hidden)
        logits: Tensor = self.head(outputs[:, -1])
        return logits

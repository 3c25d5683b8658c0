"""From a fused model to ONNX files, and the proof that they compute the same (installed as `zoo.export`)."""

from zoo.export.onnx import FULL, to_onnx
from zoo.export.parity import Parity, compare, run, session

__all__ = ["FULL", "Parity", "compare", "run", "session", "to_onnx"]

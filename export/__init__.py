"""From a fused model to ONNX files, and the proof that they compute the same (installed as `zoo.export`)."""

from zoo.export.onnx import export_tasks, to_onnx
from zoo.export.parity import Parity, compare, run, session

__all__ = ["Parity", "compare", "export_tasks", "run", "session", "to_onnx"]

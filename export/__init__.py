"""From a fused model to ONNX files, and the proof that they compute the same (installed as `zoo.export`)."""

from zoo.export.adapters import Adapted, to_adapters
from zoo.export.form import FULL
from zoo.export.int8 import to_int8
from zoo.export.mixed import to_mixed
from zoo.export.onnx import to_onnx
from zoo.export.parity import Parity, compare, run, session
from zoo.export.shared import to_shared

__all__ = [
    "FULL", "Adapted", "Parity", "compare", "run", "session", "to_adapters", "to_int8", "to_mixed", "to_onnx",
    "to_shared",
]  # fmt: skip

"""What leaves the zoo: an entry's graphs, its predictions, its latency, and checkpoints for other libraries.

How one module becomes one ONNX file is known to `zoo.export`.
"""

from zoo.deployment.entries import export_entry
from zoo.deployment.interchange import converted_entry, load_peft, save_peft
from zoo.deployment.latency import latencies
from zoo.deployment.predict import classify

__all__ = ["classify", "converted_entry", "export_entry", "latencies", "load_peft", "save_peft"]

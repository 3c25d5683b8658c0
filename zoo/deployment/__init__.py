"""What leaves the zoo: graphs, predictions, latency, checkpoints for other libraries; and entries, to other people.

How one module becomes one ONNX file is known to `zoo.export`.
"""

from zoo.deployment.entries import export_entry
from zoo.deployment.interchange import converted_entry, load_peft, save_peft
from zoo.deployment.latency import latencies
from zoo.deployment.predict import classify

__all__ = ["classify", "converted_entry", "export_entry", "latencies", "load_peft", "save_peft"]

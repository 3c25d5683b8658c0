"""Two tasks served from threads, each with a graph of its own, without torch and without this package.

zoo export efficientnet_lite0-ftn-r4-pictures --task weather --task objects -o onnx --preprocess full
python examples/serve_threads.py onnx photo.jpg photo2.jpg

Sessions of ONNX Runtime may be run by many threads at once; one per graph is enough.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

graphs = {file.stem: onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
          for file in sorted(Path(sys.argv[1]).glob("*.onnx"))}  # fmt: skip


def answer(task: str, path: str) -> str:
    """What a task sees in a photograph."""
    facts = graphs[task].get_modelmeta().custom_metadata_map
    if facts["preprocessing_in_graph"] != "full":
        raise SystemExit(f"{task}.onnx leaves resizing to its caller; export it with --preprocess full.")
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    (logits,) = graphs[task].run(None, {"images": np.asarray(photo)[None]})[0]
    shares = np.exp(logits - logits.max())
    best = int(logits.argmax())
    return f"{path}  {task}: {json.loads(facts['classes'])[best]} {100 * shares[best] / shares.sum():.1f} %"


with ThreadPoolExecutor(4) as pool:
    asked = [(task, path) for path in sys.argv[2:] for task in graphs]
    print("\n".join(pool.map(answer, *zip(*asked, strict=True))))

"""An exported graph on a photograph, by what its metadata say, without torch and without this package.

zoo export efficientnet_lite0-ftn-r4-pictures --task weather -o onnx
python examples/onnx_client.py onnx/weather.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
p, classes = json.loads(facts["preprocessing"]), json.loads(facts["classes"])
photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
crop = np.array([p["width"] or p["size"], p["size"]])
wide = (p["resize"] * np.array(photo.size) / min(photo.size)).astype(int) if p["resize"] else crop  # the shorter side
left, top = np.round((wide - crop) / 2).astype(int)
photo = photo.resize(tuple(wide), Image.Resampling[p["interpolation"].upper()])
pixels = np.asarray(photo, np.float32)[top : top + crop[1], left : left + crop[0]] / 255
images = ((pixels - p["mean"]) / p["std"]).transpose(2, 0, 1)[None].astype(np.float32)
logits = session.run(None, {"images": images})[0][0]
for k in np.argsort(-logits)[:3]:
    print(f"{classes[k]}  {100 * np.exp(logits[k]) / np.exp(logits).sum():.1f} %")

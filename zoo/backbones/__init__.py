"""Names to networks and their pre-trained weights. The zoo's own networks have a file each.

What is adapted in a network is known to `zoo.models`; networks that are trained together are `zoo.joint`'s.
"""

from zoo.backbones.generator import Generator
from zoo.backbones.lookup import architecture, build
from zoo.backbones.weights import pretrained_tensors

__all__ = ["Generator", "architecture", "build", "pretrained_tensors"]

"""Networks that are trained together and share parts of their weights. One file per way of sharing.

A frozen backbone that is adapted is `zoo.models`'; a ring by itself is `zoo.ring`'s.
"""

from zoo.joint.base import Sharing
from zoo.joint.lookup import joined, sharings
from zoo.joint.model import JointModel
from zoo.joint.network import Network

__all__ = ["JointModel", "Network", "Sharing", "joined", "sharings"]

"""What is found by trying: ranks of tasks and of layers, layers to do without, tasks to merge, cores to share.

Each trial is a whole training (`zoo.training`); what an entry claims is checked in `zoo.verification`.
"""

from zoo.search import patterns, ranks

__all__ = ["patterns", "ranks"]

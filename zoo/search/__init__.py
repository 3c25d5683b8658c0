"""What training is searched for: the rank that a task needs, and the cores that tasks should share.

Each trial is a whole training (`zoo.training`); what an entry claims is checked in `zoo.verification`.
"""

from zoo.search import patterns, ranks

__all__ = ["patterns", "ranks"]

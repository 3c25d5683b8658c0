"""What long work says of itself while it goes on."""

from zoo.progress.reporter import Reporter

__all__ = ["Reporter"]

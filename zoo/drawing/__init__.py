"""What is drawn: figures of measured entries, and what dense tasks see in an image.

A kind of task knows how its own answer is drawn (`zoo.kinds`); tables are printed by `zoo.cli`.
"""

from zoo.drawing.answers import draw_answers
from zoo.drawing.plots import accuracy_by_parameters, accuracy_by_rank

__all__ = ["accuracy_by_parameters", "accuracy_by_rank", "draw_answers"]

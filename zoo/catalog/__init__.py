"""What the zoo holds, as data: entries, backbones, tasks, recipes, the papers' figures, and where their files lie.

No torch in here, and nothing is handed on: `zoo ls` passes through.
"""

"""The `zoo` command. Thin: what a command does is known to the other rooms; here it is asked for, and printed.

`zoo ls` passes through here, so nothing is handed on.
"""

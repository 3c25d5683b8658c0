"""`python -m zoo` is the `zoo` command."""

from zoo.cli.base import main

main()

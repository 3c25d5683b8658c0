"""The packages, and registry.yaml, which stand at the top of the project and go into the built package.

With it go what is parsed of it, and the list of all data files with their hashes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

INDEX = """
import sys
from pathlib import Path
from zoo.catalog.registry import write_index
from zoo.storage.manifest import LIST, sums
registry = Path(sys.argv[1])
write_index(registry)
registry.with_name(LIST).write_text(sums())
"""


class BuildWithRegistry(build_py):
    """build_py, the registry and its index. An editable install finds the registry in the checkout."""

    def run(self) -> None:
        """Build, then add the registry, what is parsed and checked of it, and the list of data files."""
        if not self.editable_mode:  # what an earlier version left in the folder is no part of this one
            shutil.rmtree(Path(self.build_lib) / "zoo", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib).resolve() / "zoo"
            shutil.copyfile("registry.yaml", package / "registry.yaml")
            # In a process of its own, by the code that has just been built.
            paths = [str(package.parent), *filter(None, sys.path)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
            run = [sys.executable, "-B", "-P", "-c", INDEX, package / "registry.yaml"]
            subprocess.run(run, check=True, env=environment)


setup(
    packages=[*find_packages(include=["zoo*"]), "zoo.export", "zoo.recipes"],
    cmdclass={"build_py": BuildWithRegistry},
)

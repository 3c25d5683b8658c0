"""The packages, and registry.yaml, which stand at the top of the project and go into the built package."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithRegistry(build_py):
    """build_py, and the registry. An editable install finds the registry in the checkout."""

    def run(self) -> None:
        """Build, then add the registry."""
        super().run()
        if not self.editable_mode:
            shutil.copyfile("registry.yaml", Path(self.build_lib, "zoo", "registry.yaml"))


setup(
    packages=[*find_packages(include=["zoo*"]), "zoo.export", "zoo.recipes"],
    cmdclass={"build_py": BuildWithRegistry},
)

"""Package ``configs/`` as ``d2_maskrcnn/configs``; pyproject.toml has everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copy the configs beside the modules; an editable install finds them in the checkout."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "d2_maskrcnn" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})

"""What pyproject.toml cannot say: an installed package has the configurations in jaxbin/configs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigurations(build_py):
    """Copies `configs/`, where `jaxbin.common.configurations` looks for it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # where the repository itself is what is imported
            target = Path(self.build_lib, "jaxbin", "configs")
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(Path("configs").glob("*.py")):
                shutil.copy(path, target)


setup(cmdclass={"build_py": BuildWithConfigurations})

"""Copies the bundled tokenizer into the built package; everything else is in pyproject.toml.

In a clone it lies in model/, where MiniMind has its own.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTokenizer(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "minimind_sft/data/bundled_tokenizer")
        self.mkpath(str(folder))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            self.copy_file(f"model/{name}", str(folder / name))


setup(cmdclass={"build_py": BuildWithTokenizer})

"""Every wheel is the library alone; an editable install has the book's package too. pyproject.toml says the rest."""

from setuptools import setup
from setuptools.command.build_py import build_py


class LibraryAlone(build_py):
    def run(self):
        if not self.editable_mode:
            self.packages = [name for name in self.packages if name.partition(".")[0] != "csq_book"]
        super().run()


setup(cmdclass={"build_py": LibraryAlone})

"""axe-core, which judges whether everybody can read a page: the npm package, one version of it, fetched once.

`python tests/axe.py` fetches it into the virtual environment, by npm; the tests in a browser do so. Nothing of it is
installed: one file is taken from the package, and only if its checksum is the one noted here.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"  # of axe.min.js
PLACE = Path(sys.prefix) / "share" / f"axe-core-{VERSION}.min.js"


def by_npm():
    """The package as npm fetches it: with the reader's registry and proxy."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("there is no npm: install Node.js, which brings it")
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([npm, "pack", f"axe-core@{VERSION}"], cwd=folder, text=True, capture_output=True,
                             timeout=120)  # fmt: skip
        if run.returncode:
            raise OSError(run.stderr.strip()[-300:])
        return (Path(folder) / f"axe-core-{VERSION}.tgz").read_bytes()


def taken_from(package):
    with tarfile.open(fileobj=io.BytesIO(package)) as files:
        script = files.extractfile("package/axe.min.js").read()
    if hashlib.sha256(script).hexdigest() != SHA256:
        raise OSError(f"axe-core {VERSION} has another checksum than tests/axe.py notes")
    return script


def source():
    """The script; fetched if it is not there yet. OSError says why it could not be."""
    if not PLACE.exists() or hashlib.sha256(PLACE.read_bytes()).hexdigest() != SHA256:
        try:
            script = taken_from(by_npm())
        except (OSError, subprocess.TimeoutExpired, tarfile.TarError, KeyError, ValueError) as error:
            raise OSError(f"axe-core could not be fetched by npm: {error}") from error
        PLACE.parent.mkdir(parents=True, exist_ok=True)
        PLACE.write_bytes(script)
    return PLACE.read_text("utf8")


if __name__ == "__main__":
    try:
        source()
    except OSError as problem:
        sys.exit(str(problem))
    print(PLACE)

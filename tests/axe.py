"""axe-core, which judges whether everybody can read a page: the npm package, one version of it, fetched once.

`python tests/axe.py` fetches it into the virtual environment, by npm or without; .ci/run does so. Nothing of it is
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
import urllib.request
from pathlib import Path

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"  # of axe.min.js
REGISTRY = "https://registry.npmjs.org/axe-core/-/axe-core-{}.tgz"
PLACE = Path(sys.prefix) / "share" / f"axe-core-{VERSION}.min.js"


def by_npm():
    """The package as npm fetches it: with the reader's registry and proxy."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("there is no npm")
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([npm, "pack", f"axe-core@{VERSION}"], cwd=folder, text=True, capture_output=True,
                             timeout=120)  # fmt: skip
        if run.returncode:
            raise OSError(run.stderr.strip()[-300:])
        return (Path(folder) / f"axe-core-{VERSION}.tgz").read_bytes()


def by_download():
    with urllib.request.urlopen(REGISTRY.format(VERSION), timeout=60) as answer:
        return answer.read()


def taken_from(package):
    with tarfile.open(fileobj=io.BytesIO(package)) as files:
        script = files.extractfile("package/axe.min.js").read()
    if hashlib.sha256(script).hexdigest() != SHA256:
        raise OSError(f"axe-core {VERSION} has another checksum than tests/axe.py notes")
    return script


def source():
    """The script; fetched if it is not there yet. OSError says why it could not be."""
    if not PLACE.exists() or hashlib.sha256(PLACE.read_bytes()).hexdigest() != SHA256:
        problems = []
        for way in (by_npm, by_download):
            try:
                script = taken_from(way())
            except (OSError, subprocess.TimeoutExpired, tarfile.TarError, KeyError, ValueError) as error:
                problems.append(f"{way.__name__}: {error}")
                continue
            PLACE.parent.mkdir(parents=True, exist_ok=True)
            PLACE.write_bytes(script)
            break
        else:
            raise OSError("axe-core could not be fetched from the npm registry: " + "; ".join(problems))
    return PLACE.read_text("utf8")


if __name__ == "__main__":
    try:
        source()
    except OSError as problem:
        sys.exit(str(problem))
    print(PLACE)

"""Sphinx extension: a changed library, or a changed result, executes the pages again.

The execution cache knows a page by its code alone. So each state of the library gets a cache of its
own: ``_build/.jupyter_cache/<hash>``.
"""

import hashlib
import os
from pathlib import Path


def library_hash(root):
    """Hash of all that pages read beside their own code: csq_mini's sources, book/results, lists (.yml), data sets."""
    digest, read = hashlib.sha256(), ("csq_mini/**/*.py", "book/results/**/*.json", "book/**/*.yml")
    for file in sorted(file for pattern in read for file in root.glob(pattern)):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    data = root / Path(os.environ.get("CSQ_DATA", "data")).expanduser()  # a page trains on what is there
    digest.update(" ".join(sorted(place.name for place in data.glob("*"))).encode())
    return digest.hexdigest()[:16]


def set_cache_path(app, config):
    os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar is noise on a page
    cache = Path(app.outdir).parent / ".jupyter_cache" / library_hash(Path(app.srcdir))
    config.nb_execution_cache_path = str(cache)


def setup(app):
    app.connect("config-inited", set_cache_path, priority=1)  # before myst_nb reads it
    return {"parallel_read_safe": True}

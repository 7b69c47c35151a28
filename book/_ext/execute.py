"""Sphinx extension: the pages that must be executed are executed two at a time, before any is read.

myst-nb executes a page when it comes to it, one after the other. Here those that the execution cache
does not know are executed side by side, each in a kernel of its own with one thread, and put into that
cache, where myst-nb then finds them all. A page that fails stops the build, after the others are done.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from sphinx.errors import ExtensionError
from sphinx.util import logging

LOG = logging.getLogger(__name__)
AT_A_TIME = int(os.environ.get("CSQ_JOBS", min(2, os.cpu_count() or 1)))


def read_notebook(env, name):
    """The notebook that a page is, as myst-nb reads it; None if it is none."""
    path = env.doc2path(name)
    text = Path(path).read_text("utf8")
    reader = create_nb_reader(path, env.myst_config, env.mystnb_config, text)
    return reader and reader.read(text)


def is_known(cache, notebook):
    with suppress(KeyError):
        return bool(cache.match_cache_notebook(notebook))
    return False


def forget_old_states(caches, keep=5):
    """Each state of the library has a cache of its own (libhash.py): the oldest go."""
    for cache in sorted(caches.iterdir(), key=lambda folder: folder.stat().st_mtime)[:-keep]:
        shutil.rmtree(cache, ignore_errors=True)


def execute_stale_pages(app, env, names):
    """For each page about to be read whose code the cache does not know: execute it and put it there."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the kernels inherit it
    config = env.mystnb_config
    cache, place = get_cache(config.execution_cache_path), Path(config.execution_cache_path)
    place.mkdir(parents=True, exist_ok=True)
    os.utime(place)
    forget_old_states(place.parent)
    notebooks = {name: notebook for name in names if (notebook := read_notebook(env, name))}
    stale = {name: notebook for name, notebook in notebooks.items() if not is_known(cache, notebook)}

    def run(name):
        folder = str(Path(env.doc2path(name)).parent)
        return name, single_nb_execution(stale[name], folder, config.execution_timeout, allow_errors=False)

    failed = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:  # threads do: each only waits for its kernel
        for job in as_completed([pool.submit(run, name) for name in sorted(stale)]):
            name, result = job.result()
            if result.err:
                failed.append(f"{name}: {type(result.err).__name__}\n{result.exc_string}")
                LOG.info("%s: failed", name)
                continue
            bundle = CacheBundleIn(result.nb, env.doc2path(name), data={"execution_seconds": result.time})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            LOG.info("%s: executed in %.1f s", name, result.time)
    if failed:
        raise ExtensionError("Executing notebook failed\n\n" + "\n\n".join(failed))


def setup(app):
    app.connect("env-before-read-docs", execute_stale_pages)
    return {"parallel_read_safe": True}

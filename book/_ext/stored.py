"""Sphinx extension: pages show the outputs that are stored in their notebooks.

`make notebooks` executes a page and stores its outputs in the .ipynb beside it. Before any page is read, those outputs
go into the cache where MyST-NB looks before it executes a page. So site, notebooks and PDF show the same numbers, and
nothing is executed but a page whose code differs from the code of its notebook; the build names it.
"""

import os
import shutil
from pathlib import Path

import nbformat


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def take_outputs(notebook, stored):
    """Copy the stored outputs into a notebook with the same code; returns whether it has the same code."""
    new, old = code_cells(notebook), code_cells(stored)
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, kept in zip(new, old):
        cell.outputs, cell.execution_count = kept.outputs, kept.execution_count
    return True


def read_stored(page):
    """The notebook beside a page; one without cells if there is none."""
    file = Path(page).with_suffix(".ipynb")
    return nbformat.read(file, as_version=4) if file.exists() else nbformat.v4.new_notebook()


def read_page(env, name):
    """The notebook that a page is for MyST-NB; None for a page without code."""
    from myst_nb.core.read import create_nb_reader

    path = env.doc2path(name)
    text = Path(path).read_text("utf8")
    reader = create_nb_reader(path, env.myst_config, env.mystnb_config, text)
    return reader and reader.read(text)


def place(app):
    return Path(app.outdir).parent / ".jupyter_cache"


def empty_cache(app, config):
    """What an earlier build left may be older than the notebooks, or the library."""
    shutil.rmtree(place(app), ignore_errors=True)
    config.nb_execution_cache_path = str(place(app))


def fill_cache(app, env, names):
    """Put the stored outputs of each page about to be read into the cache."""
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from sphinx.util import logging

    cache = get_cache(place(app))
    for name in names:
        page = read_page(env, name)
        if page is None:
            continue
        stored = read_stored(env.doc2path(name))
        if not take_outputs(page, stored):
            logging.getLogger(__name__).info("%s: executed, since its notebook has other code (make notebooks)", name)
            continue
        page.metadata["language_info"] = stored.metadata.get("language_info", {})
        cache.cache_notebook_bundle(CacheBundleIn(page, env.doc2path(name)), check_validity=False, overwrite=True)


def setup(app):
    os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar is noise on a page
    app.connect("config-inited", empty_cache, priority=1)  # before MyST-NB reads the path
    app.connect("env-before-read-docs", fill_cache)
    return {"parallel_read_safe": True}

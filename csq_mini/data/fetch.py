"""Fetching a published data set: downloaded or copied to a scratch folder, checked, and only then put in its place.

Whatever goes wrong, what was there before stays as it was.
"""

import argparse
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from . import store

TIMEOUT = 30.0  # seconds without a byte


def fetch(name: str, place: str | Path | None = None, copy: str | Path | None = None) -> str:
    """Put a published data set under the data root, unless it is there and whole; returns a line that says so.

    Args:
        name: ``cifar10``, ``cifar100`` or ``fashion_mnist``.
        place: the data root; None is ``CSQ_DATA``, else ``data``.
        copy: a folder (or archive) on this machine to take it from; None downloads from where torchvision does.

    Raises:
        ConnectionError: if the download fails.
        FileNotFoundError, ValueError: if the copy lacks something, or what came is damaged.
    """
    from torchvision.datasets.utils import extract_archive

    here, known = store.root(place), store.source(name)
    target = here / known.folder
    if not store.problems(name, here):
        return f"{known.title} is there already and whole: {target}"
    with scratch_folder(here, name) as scratch:
        given = Path(copy).expanduser() if copy else _download(known, scratch / "download")
        _take(known, given, scratch)
        found = store.problems(name, scratch)
        if found:
            raise ValueError(f"{known.title} in {given} is not whole: {store.in_words(found)}; try another copy")
        ready = scratch / known.folder
        for file in ready.glob("*.gz"):  # our loader reads these, torchvision's what is in them
            extract_archive(file, ready)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            ready.rename(target)
        else:
            for file in ready.iterdir():  # one by one: each is always whole
                file.replace(target / file.name)
    return f"{known.title} is ready and whole: {target}"


@contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder on the disk of the data root for what is not whole yet; removed afterwards, whatever happens."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name}-", suffix=".partial", dir=root) as folder:
        yield Path(folder)


def _download(known: store.Source, into: Path) -> Path:
    """Every archive of a data set, each with the checksum that torchvision knows."""
    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision would wait for ever
    try:
        for url, file, md5 in known.archives:
            download_url(url, into, file, md5)
    except RuntimeError:  # how torchvision reports a wrong checksum
        text = f"{known.title}: what came from {url} is cut or damaged (its checksum is not the published one)"
        raise ValueError(f"{text}; run this again, or give a copy: --from DIR") from None
    except (OSError, HTTPException) as error:
        text = f"cannot download {known.title} from {url}: {getattr(error, 'reason', None) or error}"
        raise ConnectionError(f"{text}; without network give a copy: --from DIR") from None
    finally:
        socket.setdefaulttimeout(before)
    return into


def _take(known: store.Source, given: Path, scratch: Path) -> None:
    """Copy the files, or unpack the archives, from ``given``: a folder or an archive."""
    from torchvision.datasets.utils import check_md5, extract_archive

    for folder in (given / known.folder, given):
        if all((folder / file).is_file() for file in known.files):
            (scratch / known.folder).mkdir(parents=True)
            for file in known.files:
                shutil.copyfile(folder / file, scratch / known.folder / file)
            return
    for _, file, md5 in known.archives:
        archive = given if given.name == file else given / file
        if not archive.is_file():
            raise FileNotFoundError(_lacking(known, given))
        if not check_md5(archive, md5):
            raise ValueError(f"{archive} is damaged (its checksum is not the published one); try another copy")
        extract_archive(archive, scratch)


def _lacking(known: store.Source, given: Path) -> str:
    if not given.exists():
        return f"there is no {given}: give --from a folder that holds {known.title}"
    folder = given / known.folder if (given / known.folder).is_dir() else given
    lacking = [file for file in known.files if not (folder / file).is_file()]
    if len(lacking) < len(known.files):
        return f"the copy of {known.title} in {folder} lacks {', '.join(lacking)}; try another copy"
    archives = " and ".join(file for _, file, _ in known.archives)
    return f"no {known.title} in {given}: looked for the folder {known.folder}, and for {archives}"


def run(work: Callable[[], str]) -> int:
    """Print what the work says it did, or one line on why it failed; returns a script's exit code."""
    try:
        print(work())
        return 0
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was changed", file=sys.stderr)
        return 130


def main(name: str, about: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``data_scripts/<name>.py``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--root", metavar="DIR", help="data root; if not given, CSQ_DATA, else data")
    parser.add_argument("--from", dest="copy", metavar="DIR", help="take it from a copy there instead of downloading")
    args = parser.parse_args(argv)
    return run(lambda: fetch(name, args.root, args.copy))

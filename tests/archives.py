"""Published data sets in small: archives of the true layout, which torchvision's classes are made to expect.

And a server on this machine that hands them out whole, cut short, damaged, or not at all.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import time

import numpy as np

FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "fashion_mnist": "FashionMNIST/raw"}


def torchvision_class(name):
    """torchvision's class of a published set, imported where a test needs it: collecting tests stays fast."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashion_mnist": datasets.FashionMNIST}[name]


def md5(content):
    return hashlib.md5(content).hexdigest()


class Python2(pickle._Pickler):
    """Writes text as Python 2 did, and so as the published CIFAR files have it: as bytes of no known encoding."""

    def save_str(self, text):
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode())
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, str: save_str}


def pickled(content):
    file = io.BytesIO()
    Python2(file, protocol=3).dump(content)
    return file.getvalue()


def images(seed, count, pixels):
    return np.random.RandomState(seed).randint(0, 256, (count, pixels), dtype=np.uint8)


def cifar_files(name):
    """File name -> content, training files first; as many images of each class."""
    if name == "cifar10":
        sets = [(f"data_batch_{i}", i, 20) for i in range(1, 6)] + [("test_batch", 6, 20)]
        made = {file: {"data": images(seed, n, 3072), "labels": [*range(10)] * 2} for file, seed, n in sets}
        return {**{k: pickled(v) for k, v in made.items()}, "batches.meta": pickled({"label_names": ["a"] * 10})}
    coarse = {"coarse_labels": [7] * 200}
    made = {
        "train": {"data": images(1, 200, 3072), "fine_labels": [*range(100)] * 2, **coarse},
        "test": {"data": images(2, 100, 3072), "fine_labels": [*range(100)], **coarse},
    }
    return {**{k: pickled(v) for k, v in made.items()}, "meta": pickled({"fine_label_names": ["a"] * 100})}


def tar_of(folder, files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def idx(array):
    """The format of MNIST: two zeros, 8 for bytes, the number of dimensions, each as four bytes, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion_files():
    made = {}
    for part, seed, count in (("train", 1, 60), ("t10k", 2, 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        made[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(images(seed, count, 784).reshape(-1, 28, 28)), mtime=0)
        made[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels), mtime=0)
    return made


def publish(monkeypatch, name, address="http://127.0.0.1:9/"):
    """Make torchvision expect a small data set at ``address``; returns its files, and what can be downloaded."""
    published = torchvision_class(name)
    if name == "fashion_mnist":
        files = fashion_files()
        monkeypatch.setattr(published, "mirrors", [address])
        monkeypatch.setattr(published, "resources", [(k, md5(v)) for k, v in files.items()])
        return files, files
    cifar, files = published, cifar_files(name)
    *train, test, meta = ([k, md5(v)] for k, v in files.items())
    archive = tar_of(cifar.base_folder, files)
    monkeypatch.setattr(cifar, "train_list", train)
    monkeypatch.setattr(cifar, "test_list", [test])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "filename": meta[0], "md5": meta[1]})
    monkeypatch.setattr(cifar, "url", address + cifar.filename)
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive))
    return files, {cifar.filename: archive}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def put(root, name, files):
    """Lay a published set out under a data root, as torchvision does."""
    write(root / FOLDER[name], files)
    return root


def damage(content):
    """The same number of bytes, one of them another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@contextlib.contextmanager
def server():
    """A server that hands out ``.files``, one of which may be cut, damaged or never sent: ``.faults[name]``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            fault = loopback.faults.get(name)
            content = loopback.files.get(name)
            loopback.asked.append(name)
            if fault == "silent":
                time.sleep(2)
                return
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            content = damage(content) if fault == "damaged" else content
            with contextlib.suppress(OSError):  # torchvision asks once for the headers alone
                self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

        def log_message(self, *ignored):
            pass

    loopback = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    loopback.daemon_threads = True
    loopback.block_on_close = False
    loopback.files, loopback.faults, loopback.asked = {}, {}, []
    loopback.address = f"http://127.0.0.1:{loopback.server_port}/"
    thread = threading.Thread(target=loopback.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield loopback
    finally:
        loopback.shutdown()
        loopback.server_close()


def tree(folder):
    """Every file under a folder and what it holds; to see that nothing changed."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

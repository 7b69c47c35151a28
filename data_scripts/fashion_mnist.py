"""Fetch Fashion-MNIST, check it and put it under the data root (30 MB to download, 90 MB on disk).

A set that is there and whole is left alone; one that is damaged is replaced.
Source: https://github.com/zalandoresearch/fashion-mnist
"""

from csq_mini.data.fetch import main

if __name__ == "__main__":
    raise SystemExit(main("fashion_mnist", __doc__))

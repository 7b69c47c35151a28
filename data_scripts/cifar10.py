"""Fetch CIFAR-10, check it and put it under the data root (170 MB to download, 190 MB on disk).

A set that is there and whole is left alone; one that is damaged is replaced.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from csq_mini.data.fetch import main

if __name__ == "__main__":
    raise SystemExit(main("cifar10", __doc__))

"""Decode a folder of images in ImageNet's layout once, for csq_mini.data.image_folder.

    DIR/train/<class>/*.jpg (or png, bmp, webp ...)    DIR/val/<class>/*.jpg

The shorter side is resized to --side pixels and the centre square kept. ImageNet itself must be
obtained from https://www.image-net.org and unpacked into this layout; at 256 pixels its arrays take
262 GB on disk, and hours to decode.
"""

import argparse

from csq_mini.data.fetch import run
from csq_mini.data.folders import decode

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", metavar="DIR", required=True, help="the folder with train and val")
    parser.add_argument("--root", metavar="DIR", help="data root; if not given, CSQ_DATA, else data")
    parser.add_argument("--name", default="imagefolder", help="of the set (%(default)s)")
    parser.add_argument("--side", type=int, default=256, help="pixels a side (%(default)s)")
    args = parser.parse_args()
    raise SystemExit(run(lambda: decode(args.source, args.root, args.name, args.side)))

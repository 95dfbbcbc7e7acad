"""Trains a model; the same as `jepa train`.

Example: python scripts/train.py -m experiment=demo seed=0,1,2
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))

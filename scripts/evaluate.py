"""Scores a checkpoint; the same as `jepa evaluate`.

Example: python scripts/evaluate.py checkpoint=outputs/demo/checkpoint
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))

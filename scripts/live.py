"""Decodes live streams; the same as `jepa live`.

Example: python scripts/live.py checkpoint=outputs/demo/checkpoint
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["live", *sys.argv[1:]]))

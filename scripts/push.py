"""Uploads a checkpoint to the hub; the same as `jepa push`.

Example: python scripts/push.py checkpoint=outputs/demo/checkpoint to=organisation/name
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["push", *sys.argv[1:]]))

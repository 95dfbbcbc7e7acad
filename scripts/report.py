"""Writes the report; the same as `jepa report`.

Example: python scripts/report.py evaluation=outputs/demo/evaluation
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["report", *sys.argv[1:]]))

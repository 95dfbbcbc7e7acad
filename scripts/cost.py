"""Estimates what a workload costs to serve; the same as `jepa cost`.

Example: python scripts/cost.py input_tokens=100000 output_tokens=1450
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["cost", *sys.argv[1:]]))

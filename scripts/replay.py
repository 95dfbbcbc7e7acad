"""Compares policies on a real timeline; the same as `jepa replay`.

Example: python scripts/replay.py timeline.format=epic timeline.path=narrations.csv timeline.durations=video_info.csv
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["replay", *sys.argv[1:]]))

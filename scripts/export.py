"""Writes a checkpoint for other tools; the same as `jepa export`.

Example: python scripts/export.py checkpoint=outputs/llm_jepa_regex/checkpoint output=exported
"""

import sys

from jepa.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["export", *sys.argv[1:]]))

"""How long `import jepa` and `jepa --help` take, as ratios to `python -c pass`.

    python scripts/bench_import.py [--quick]

Each is a new process, in turns. The ratio is of the shortest times. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

CODE = {
    "pass": "pass",
    "import jepa": "import jepa",
    "jepa --help": "import sys; from jepa.cli import main; sys.exit(main(['--help']))",
}


def seconds(repetitions: int) -> dict[str, float]:
    """The shortest wall time of each in a new process."""
    found: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(repetitions):
        for name, code in CODE.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            found[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    found = seconds(3 if parser.parse_args().quick else 20)
    shortest = found["pass"]
    figures = {name: {"seconds": round(each, 4), "ratio": round(each / shortest, 2)} for name, each in found.items()}
    for name, row in figures.items():
        print(f"{name:12} {1000 * row['seconds']:7.1f} ms {row['ratio']:6.2f}x")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

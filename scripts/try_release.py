"""Installs a wheel into a new environment and decodes there, once from Python and once live.

    python scripts/try_release.py dist/selective_jepa-0.2.0-py3-none-any.whl

The environment lies in a folder that is removed at the end, and nothing of this clone is seen from it. It takes what
the wheel requires from the package index: some GB, and some minutes. Exits with 1 where a step fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

TRAIN = [
    *("experiment=scratch", "name=release", "workers=0", "accelerator=cpu", "jepa.steps=4", "jepa.batch_size=16"),
    *("jepa.validate_every=4", "decoder.steps=4", "decoder.batch_size=16", "decoder.validate_every=4"),
    *("decoder.streams=2", "decoder.stream_seconds=10"),
]
DECODE = """
import numpy as np, jepa
from jepa.selective import Gate, SelectiveDecoder
model = jepa.load("outputs/release/checkpoint")
latents = model.embed(["the red bar moves left"] * 4 + ["a blue ring blinks"] * 4).detach().numpy()
selective = SelectiveDecoder(Gate(0.5), model)
emissions = selective.run(latents, np.arange(8.0))
assert emissions and selective.ledger.decoder.calls == len(emissions), emissions
print(jepa.__version__, jepa.__file__, len(emissions), "texts")
"""


def watch(command: list[str], folder: Path, environment: dict[str, str], seconds: float = 60.0) -> None:
    """Serves the embedded world until a text has been decoded; raises RuntimeError if none is."""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next((line.split()[-1] for line in server.stdout if line.startswith("live: ")), None)
            if url is None:
                raise RuntimeError("jepa live must print its address, got none")
            page = urllib.request.urlopen(url, timeout=10).read()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                metrics = urllib.request.urlopen(f"{url}metrics", timeout=10).read().decode()
                calls = re.search(r"^jepa_live_decoder_calls_total\{.*\} ([1-9]\d*)$", metrics, re.M)
                if calls:
                    print(f"live: a page of {len(page)} bytes, {calls[1]} decoder calls", flush=True)
                    return
                time.sleep(0.5)
            raise RuntimeError(f"jepa live must decode a text within {seconds} s, got none:\n{metrics}")
        finally:
            server.terminate()
            server.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "environment", with_pip=True)
        binaries = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

        def run(program: str, *arguments: str) -> None:
            subprocess.run([str(binaries / program), *arguments], cwd=folder, env=clean, check=True)

        run("python", "-m", "pip", "install", "--quiet", f"{wheel}[pretrained,live]")
        print(f"installed after {time.monotonic() - begin:.0f} s", flush=True)
        run("python", "-m", "pip", "check")
        run("jepa", "--help")
        run("jepa", "train", *TRAIN)
        run("python", "-c", DECODE)
        live = ["live", "checkpoint=outputs/release/checkpoint", "source=world", "policy=uniform", "port=0"]
        watch([str(binaries / "jepa"), *live], folder, clean)
    print(f"{wheel.name} works, after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")

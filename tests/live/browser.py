"""A page in headless Chromium, driven through the DevTools protocol."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

WAIT = 30.0  # seconds at most for anything that is waited for
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


@contextmanager
def chromium_page(command: str, folder: Path) -> Iterator[Browser]:
    """A page in a Chromium that keeps its files in `folder`."""
    arguments = [command, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        try:
            port = wait(lambda: (folder / "DevToolsActivePort").read_text().split()[0], FileNotFoundError, IndexError)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT) as answer:
                page = next(each for each in json.load(answer) if each["type"] == "page")
            with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()


class Browser:
    """One page. `errors` are the exceptions that nobody caught, and what the page's security policy forbade."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers, self.errors = socket, itertools.count(1), list[str]()
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT))
            if message.get("id") == number:
                return dict(message["result"])
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(given["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and given["entry"]["source"] == "security":
            self.errors.append(given["entry"]["text"])

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        wait(lambda: self.run("document.readyState") == "complete" and self.run("location.href").startswith(url))

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        done = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def wait(self, script: str) -> None:
        """Until an expression on the page is true."""
        wait(lambda: self.run(f"Boolean({script})"))

    def look(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """The size of the window, and the theme that its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[theme])


def wait(look: Any, *excused: type[Exception]) -> Any:
    """The first true value of `look()`, which may raise what is excused until then."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except excused:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"waited for {WAIT} s")

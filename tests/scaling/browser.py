"""Headless Chromium over its debugging pipe: enough to press keys, read a page and take its picture."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36}
_KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def executable() -> str:
    """Path of a Chromium, or a skip that says which names were looked for."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is on the path, and CHROMIUM does not name one")
    return found


class Browser:
    """One headless Chromium with one page; messages travel through file descriptors 3 and 4."""

    def __init__(self, folder: Path):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def connect():
            # Both ends may lie on 3 or 4 already: move them out of the way before they are put there.
            ends = [os.dup(to_browser), os.dup(from_browser)]
            safe = [os.dup(end) for end in ends]
            os.dup2(safe[0], 3)
            os.dup2(safe[1], 4)

        command = [executable(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
        command += ["--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._numbers, self._buffer, self.events, self._session = itertools.count(1), b"", [], None
        page = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters) -> dict:
        """One command of the debugging protocol and its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self, *, patience: float = 60.0) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], patience)
            data = os.read(self._read, 2**20) if ready else b""
            if not data:
                raise RuntimeError("the browser does not answer")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, *, query: str = "") -> None:
        """Loads a file and waits until it has settled."""
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + query)
        for _ in range(200):
            if self.read("document.readyState") == "complete" and self.read("location.protocol") == "file:":
                return
            time.sleep(0.05)
        raise RuntimeError(f"{path} did not load")

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """The size of the window, CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )  # fmt: skip
        self.read("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def prefers(self, **features: str) -> None:
        """Media features such as `color_scheme="dark"`."""
        named = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def read(self, expression: str):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", expression))
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Presses and releases keys, as a person does."""
        for key in keys:
            event = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS.get(key) or ord(key.upper())}
            if key not in _KEYS or key == " ":
                event |= {"text": key}
            elif key == "Enter":
                event |= {"text": "\r"}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in event.items() if k != "text"})

    def move(self, x: float, y: float) -> None:
        """Moves the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and every address asked for that is not in the file."""
        self.read("1")
        found = []
        for event in self.events:
            name, what = event["method"], event["params"]
            if name == "Runtime.exceptionThrown":
                found.append(what["exceptionDetails"].get("exception", {}).get("description", "exception"))
            elif name == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
                found.append(str(what["args"]))
            elif name == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                found.append(what["entry"]["text"])
            elif name == "Network.requestWillBeSent":
                url = what["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    found.append(f"asked the network for {url}")
        return found

    def picture(self, path: Path | None = None, *, whole: bool = True) -> bytes:
        """A PNG of the page, all of it or what the window shows."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        data = base64.b64decode(answer["data"])
        if path:
            path.write_bytes(data)
        return data

"""A page in headless Chromium: what it loads, its errors, a picture.

    python -m bundle.bench.browser output/learned_atlas/quality.html quality.png

Chromium is controlled by its DevTools protocol over a pipe (``--remote-debugging-pipe``), which
needs only the standard library. The page is opened unchanged.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Browser", "Events", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# The protocol's pipe uses descriptors 3 and 4; ours are copied there.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The first Chromium on the path; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Events:
    """Events while a page was open.

    Attributes:
        errors: messages of the console, the page's scripts and the loader.
        requests: requested addresses, except pictures inside the page.
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One headless Chromium with one page open; a context manager.

    Args:
        page: the file.
        width: of the window, pixels.
        patience: longest waiting time for an answer, seconds.

    Raises:
        RuntimeError: Chromium ended, or didn't answer in time.
    """

    def __init__(self, page: str | Path, width: int = 1200, patience: float = 240.0) -> None:
        program = find_chromium()
        if program is None:
            raise RuntimeError("no Chromium on the path")
        self.address = Path(page).absolute().as_uri()
        self.patience = patience
        self.events = Events()
        self.profile = tempfile.mkdtemp(prefix="profile-")
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        self._loaded = False
        command_end, self._to = os.pipe()
        self._from, answer_end = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(command_end), str(answer_end), program, *FLAGS,
             f"--user-data-dir={self.profile}", f"--window-size={width},900", "about:blank"],
            pass_fds=[command_end, answer_end], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_end)
        os.close(answer_end)

    def __enter__(self) -> Browser:
        """Open the page and wait until it is loaded."""
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
            self.ask("Page.navigate", url=self.address)
            self._wait(lambda: self._loaded)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End Chromium."""
        self.close()

    def close(self) -> None:
        """End Chromium and remove its profile."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in (self._to, self._from):
            os.close(end)
        shutil.rmtree(self.profile, ignore_errors=True)

    def value(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page, with promises awaited."""
        answer = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails'].get('text')}")
        return answer["result"].get("value")

    def reload(self) -> None:
        """Load the page again and wait until it is there."""
        self._loaded = False
        self.ask("Page.reload")
        self._wait(lambda: self._loaded)

    def until(self, expression: str) -> Any:
        """Wait until an expression has a true value; return it.

        Raises:
            RuntimeError: it has none in time.
        """
        deadline = time.monotonic() + self.patience
        while not (result := self.value(expression)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{expression}: still {result!r} after {self.patience:g} s")
            time.sleep(0.02)
        return result

    def click(self, selector: str, right: float = 0.5, down: float = 0.5) -> None:
        """Press and release the left button over an element.

        Args:
            selector: CSS.
            right: place in the element, 0 to 1 from the left.
            down: likewise, from the top.
        """
        place = self._place(selector, right, down)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def wheel(self, selector: str, down: float) -> None:
        """Turn the wheel over an element, pixels."""
        place = self._place(selector, 0.5, 0.5)
        self.ask("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=down, **place)

    def press(self, key: str) -> None:
        """Press and release a key that has a name, such as ``ArrowUp``."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def choose(self, selector: str, text: str) -> None:
        """Choose the option of a select element that reads ``text``, as a person does.

        Raises:
            RuntimeError: there is none.
        """
        self.value(
            f"""(() => {{
              const list = document.querySelector({json.dumps(selector)});
              const option = [...list.options].find(one => one.text === {json.dumps(text)});
              list.value = option.value;
              list.dispatchEvent(new Event('change', {{ bubbles: true }}));
            }})()"""
        )

    def _place(self, selector: str, right: float, down: float) -> dict[str, float]:
        """A point of an element in the window, which is scrolled there.

        Two frames are waited for: until a frame is drawn, Chromium looks for what lies under a
        click where it was before the page was scrolled.
        """
        left, top, width, height = self.value(
            f"""(async () => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{ block: 'center' }});
              for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
              const box = element.getBoundingClientRect();
              return [box.left, box.top, box.width, box.height];
            }})()"""
        )
        return {"x": left + right * width, "y": top + down * height}

    def picture(self, path: str | Path) -> None:
        """The whole page as a PNG, including the part below the window."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(answer["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answers: list[dict[str, Any]] = []
        number = self._number

        def keep(message: dict[str, Any]) -> None:
            if message.get("id") == number:
                answers.append(message)

        self._wait(lambda: bool(answers), keep)
        if "error" in answers[0]:
            raise RuntimeError(f"{method}: {answers[0]['error'].get('message')}")
        return answers[0]["result"]

    def _wait(
        self, done: Callable[[], bool], also: Callable[[dict[str, Any]], object] | None = None
    ) -> None:
        deadline = time.monotonic() + self.patience
        while not done():
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._from, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError(
                    "Chromium gave no answer in time" if not ready else "Chromium ended"
                )
            *messages, self._rest = (self._rest + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                self._note(message)
                if also is not None:
                    also(message)

    def _note(self, message: dict[str, Any]) -> None:
        """Record the events in a message."""
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.events.errors.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.events.errors.append(params["exceptionDetails"].get("text", "exception"))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.events.errors.append(str(params["args"]))
        elif method == "Network.loadingFailed":
            self.events.errors.append(params["errorText"])
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith("data:"):
                self.events.requests.append(address)


def main() -> int:
    """Take the picture; errors of the page go to standard error and give status 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path, help="a .png")
    options = parser.parse_args()
    with Browser(options.page) as browser:
        browser.picture(options.picture)
    for error in browser.events.errors:
        print(error, file=sys.stderr)
    return int(bool(browser.events.errors))


if __name__ == "__main__":
    sys.exit(main())

"""A headless Chromium for tests of pages."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
DRIVER = shutil.which("chromedriver") or ""
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (Debian's packages chromium and chromium-driver)"
)
FLAGS_OF_CHROMIUM = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars"


class Browser:
    """A headless Chromium."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        chosen = webdriver.ChromeOptions()
        chosen.binary_location = CHROMIUM
        for flag in FLAGS_OF_CHROMIUM.split():
            chosen.add_argument(flag)
        chosen.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=chosen, service=Service(DRIVER))
        self.driver.set_script_timeout(120)

    def open(self, path: Path, width: int = 1440, scheme: str = "light") -> None:
        """Show a page to a screen of that width, light or dark."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get(path.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str, text: str = "") -> None:
        """Click as a person does: where it is, on what is on top there."""
        found = self.driver.find_elements("css selector", selector)
        element = next(one for one in found if text in one.text)
        self.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()

    def texts(self, selector: str) -> list[str]:
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.innerText)"
        )
        return list(self.run(script, selector))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """What the page fetched, or tried to, since this was last asked."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    started = Browser()
    try:
        yield started
    finally:
        started.driver.quit()


def violations(browser: Browser) -> list[str]:
    """What axe-core objects to, of what it can decide."""
    from importlib.resources import files

    browser.run((files("axe_core_python") / "axe.min.js").read_text("utf-8") + ";window.axe = axe")
    found = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document).then(r => done(r.violations), e => done([{id: String(e), nodes: []}]))"
    )
    return [f"{each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}" for each in found]

"""The demo's page and the report in a headless Chromium, on a desktop and a phone, light and dark."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynpix_jax.core.errors import UserError
from dynpix_jax.serving.demo import Demo, DemoServer
from dynpix_jax.visualization.report import report_html
from tests.serving.browser import CHROMIUM, Browser
from tests.visualization.test_curves_report import PICTURES, TASKS, budgets, example

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


class Answers(Demo):
    """Numbers that tell which knob was asked for; the network behind the real ones is tested beside this."""

    def __init__(self) -> None:
        self.knob = "gates"

    def state(self) -> dict[str, Any]:
        return {"name": "a <b>network</b>", "tasks": ["boundaries"], "stage": "gates", "knob": self.knob}

    def label(self, photo: bytes, knob: float) -> dict[str, Any]:
        if photo.startswith(b"no picture"):
            raise UserError("corrupt image: this file")
        url = f"data:image/png;base64,{base64.b64encode(photo).decode()}"
        numbers = {"macs": (5 + knob) * 1e9, "macs_open": 1e10, "milliseconds": 12.3, "density": 0.5}
        return {"photo": url, "pictures": {"boundaries": url, "computed": url}, "prediction": None, **numbers}


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer(Answers()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def look(browser: Browser, name: str) -> float:
    """Mean brightness of what is seen; kept as a picture in $DYNPIX_SCREENSHOTS."""
    seen = browser.screenshot()
    if folder := os.environ.get("DYNPIX_SCREENSHOTS"):
        Image.fromarray(seen).save(Path(folder) / f"{name}.png")
    return float(seen.mean())


def fits(browser: Browser) -> bool:
    """Whether nothing has to be scrolled sideways, but within its own frame."""
    return bool(browser.value("document.documentElement.scrollWidth <= innerWidth"))


def test_a_photo_and_the_slider_of_the_demo(browser: Browser, server: DemoServer, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(picture, "png")
    photo, text = tmp_path / "photo.png", tmp_path / "text.png"
    photo.write_bytes(picture.getvalue())
    text.write_bytes(b"no picture")
    brightness = {}
    for width, dark in ((1280, False), (390, False), (390, True)):
        browser.open(server.url, width=width, dark=dark)
        browser.wait_for("!document.getElementById('knob').hidden")
        assert browser.value("document.getElementById('title').textContent") == "a <b>network</b>"
        browser.choose_file("#file", photo)
        browser.wait_for("document.getElementById('numbers').textContent.includes('5.00e9 MACs')")
        slide = (
            "const s = document.getElementById('slider'); s.value = -2; s.dispatchEvent(new Event('input'))"
        )
        browser.value(f"{{ {slide} }}")
        browser.wait_for("document.getElementById('numbers').textContent.includes('3.00e9 MACs')")
        assert browser.value("document.getElementById('value').textContent") == "−2 on the gates"
        browser.wait_for(
            "[...document.images].length === 3 && [...document.images].every(i => i.naturalWidth === 90)"
        )
        assert fits(browser)
        brightness[width, dark] = look(browser, f"demo_{width}{'_dark' * dark}")
        assert browser.complaints == []
    assert brightness[390, False] > brightness[390, True] + 50
    browser.choose_file("#file", text)
    browser.wait_for("document.getElementById('error').textContent === 'corrupt image: this file'")
    browser.complaints.clear()  # of the status 422


def test_the_report(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_html("a <b>", {"device": "x"}, TASKS, budgets(), [example()], PICTURES))
    brightness = {}
    for width, dark in ((1280, False), (390, False), (390, True)):
        browser.open(page.as_uri(), width=width, dark=dark)
        browser.wait_for("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert browser.value("document.querySelector('h1').textContent") == "a <b>"
        assert fits(browser)
        brightness[width, dark] = look(browser, f"report_{width}{'_dark' * dark}")
        assert browser.complaints == []
    assert brightness[390, False] > brightness[390, True] + 30

"""The annotator's page in a real browser: click, preview, save, keys, undo, reload."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.data.stanford2d3d import read_points
from tests.data import panorama_room as room
from tests.tools.chromium import Browser, find_chromium
from tests.tools.test_annotation import FLOOR, NAME, NORTH, WALL, server, source
from tools.annotate_panorama.server import AnnotationServer

__all__ = ["server", "source"]  # fixtures

LOADED = "typeof ready !== 'undefined' && ready"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium found (looked for chromium, chromium-browser, google-chrome in PATH)")
    with Browser(binary, tmp_path / "profile") as browser:
        yield browser


def click_at(browser: Browser, picture: str, point: tuple[int, int]) -> None:
    """Clicks the middle of a pixel of the full panorama in one of the pictures."""
    browser.run(f"get('{picture}').scrollIntoView({{block: 'center'}})")
    x, y, width, height = browser.run(
        f"(() => {{ const b = get('{picture}').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    browser.click(x + (point[0] + 0.5) / 256 * width, y + (point[1] + 0.5) / 128 * height)


def shown_normals(browser: Browser) -> np.ndarray:
    """The vectors (128, 256, 3) that the preview's colours stand for, of any length."""
    encoded = browser.run(
        "(() => { const c = document.createElement('canvas'); c.width = 256; c.height = 128;"
        " const g = c.getContext('2d'); g.drawImage(get('local'), 0, 0);"
        " return btoa(String.fromCharCode(...g.getImageData(0, 0, 256, 64).data))"
        " + ' ' + btoa(String.fromCharCode(...g.getImageData(0, 64, 256, 64).data)); })()"
    )
    colours = np.frombuffer(b"".join(map(base64.b64decode, encoded.split())), np.uint8)
    return (colours.reshape(128, 256, 4)[..., :3] / 127.5 - 1) * [1, -1, -1]


def test_annotating(browser: Browser, server: AnnotationServer, tmp_path: Path) -> None:
    out = tmp_path / "points.json"
    first, second = f"area_3/{NAME}", f"area_5a/{NAME}"
    browser.go(server.url)
    browser.wait(LOADED)
    assert first in browser.run("get('name').textContent")
    assert browser.run("get('count').textContent") == "0 of 2 panoramas have a point"
    assert browser.run("get('local').hidden")

    # A click saves, marks and previews.
    click_at(browser, "photo", WALL)
    browser.wait("!get('local').hidden && get('local').complete && get('local').naturalWidth === 256")
    assert read_points(out) == {first: WALL}
    assert browser.run("get('local').src").endswith(f"local.png?x={WALL[0]}&y={WALL[1]}")
    assert browser.run("get('count').textContent") == "1 of 2 panoramas have a point"
    left = browser.run("parseFloat(document.querySelector('.mark').style.left)")
    assert left == pytest.approx(100 * (WALL[0] + 0.5) / 256)
    # The preview shows the normals of the room as they are seen, but where it is yellow.
    vectors = shown_normals(browser)[::2, ::2]
    length = np.linalg.norm(vectors, axis=-1)
    plain = np.abs(length - 1) < 0.02
    expected = room.seen(room.room(NORTH)[1], NORTH)
    assert plain.mean() > 0.9
    assert room.angles(vectors / length[..., None], expected)[plain].max() < 1

    # A click on the floor is refused with the reason, and nothing changes.
    click_at(browser, "stored", FLOOR)
    browser.wait("get('message').classList.contains('bad')")
    assert "no upright surface" in browser.run("get('message').textContent")
    assert read_points(out) == {first: WALL}

    # Keys: next, a click in the other picture, undo, previous.
    browser.press("ArrowRight")
    browser.wait(f"get('name').textContent.includes('{second}') && {LOADED}")
    assert browser.run("get('next').disabled && get('local').hidden")
    click_at(browser, "stored", (WALL[0], WALL[1] - 3))
    browser.wait("get('count').textContent.startsWith('2 of 2')")
    assert read_points(out) == {first: WALL, second: (WALL[0], WALL[1] - 3)}
    browser.press("u")
    browser.wait(f"get('count').textContent.startsWith('1 of 2') && {LOADED}")
    assert read_points(out) == {first: WALL}
    assert browser.run("document.querySelector('.mark').hidden")
    browser.press("ArrowLeft")
    browser.wait(f"get('name').textContent.includes('{first}')")

    # While the next panorama loads, nothing of this one can be clicked.
    browser.wait(LOADED)
    assert browser.run("show(1), !ready && !get('photo').hasAttribute('src') && get('local').hidden")
    browser.run("get('photo').click()")
    browser.wait(LOADED)
    assert read_points(out) == {first: WALL}

    # Loaded anew, it shows the saved points; "next without point" goes to the one that is left.
    browser.go("about:blank")
    browser.go(server.url + "#1")
    browser.wait(f"{LOADED} && !get('local').hidden")
    assert browser.run("points") == [list(WALL), None]
    assert not browser.run("document.querySelector('.mark').hidden")
    browser.press("n")
    browser.wait(f"get('name').textContent.includes('{second}')")
    assert browser.screenshot()

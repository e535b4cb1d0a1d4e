"""The demo's server over HTTP: pictures and numbers, the slider of gates, refusals. No browser is needed."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

import dynpix_jax
from dynpix_jax import papers
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import variable_shapes
from dynpix_jax.run_config import read_run
from dynpix_jax.serving.demo import MAX_BODY, PAGE, Demo, DemoServer
from dynpix_jax.serving.predictor import Predictor
from dynpix_jax.serving.trained import Trained
from tests.tiny import SHORT_CONFIG

IMAGE = np.random.default_rng(2).integers(0, 256, (32, 40, 3), np.uint8)
PHOTO = cv2.imencode(".png", IMAGE[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def server(tiny_run) -> Iterator[DemoServer]:
    demo = Demo(dynpix_jax.load(tiny_run.workdir), max_side=40)
    with DemoServer(demo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: DemoServer, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def label(server: DemoServer, knob: str = "0", photo: bytes = PHOTO) -> dict:
    status, content, _ = ask(server, "POST", f"/label?knob={knob}", photo)
    assert status == 200, content
    return json.loads(content)


def pixels(url: str) -> np.ndarray:
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_the_page_and_what_it_asks_first(server):
    status, page, headers = ask(server, "GET", "/")
    assert (status, page) == (200, PAGE.read_bytes())
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert not re.search(rb"https?://", page)
    state = json.loads(ask(server, "GET", "/state")[1])
    assert state == {"name": "tiny", "tasks": ["boundaries"], "stage": "gates", "knob": "gates"}


def test_a_photo_and_the_slider(server):
    found = label(server)
    np.testing.assert_array_equal(pixels(found["photo"]), IMAGE)
    assert set(found["pictures"]) == {"boundaries", "computed"}
    assert all(pixels(url).shape == IMAGE.shape for url in found["pictures"].values())
    # Untrained gates have large logits.
    less, more = label(server, "-1e6"), label(server, "1e6")
    assert less["density"] == 0.0 < found["density"] < more["density"] == 1.0
    assert less["macs"] < found["macs"] < more["macs"] == pytest.approx(more["macs_open"])
    # Dark where nothing was computed: the ponder map is another than where everything was.
    assert (pixels(less["pictures"]["computed"]) != pixels(more["pictures"]["computed"])).any()
    assert label(server)["density"] == found["density"]


@pytest.fixture(scope="module")
def own_gates(tmp_path_factory) -> Predictor:
    """A network of a user's gates, whose bias has a name of its own."""
    config = tmp_path_factory.mktemp("own") / "own.py"
    own = SHORT_CONFIG.replace('"kind": "pixel"', '"kind": "tests.own_gates:Leaning"')
    config.write_text(own)
    run = read_run(load_config(str(config)))
    system = papers.build(run.stages[-1].model)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path.endswith(("var", "scale", "lean")):
            return np.full(leaf.shape, 1.0, leaf.dtype)
        return rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype)

    variables = map_named(draw, variable_shapes(system))
    return Predictor(run, Trained(system, variables, "gates", 0, 0.5))


def test_the_slider_moves_gates_by_the_bias_that_they_declare(own_gates):
    demo = Demo(own_gates, max_side=40)
    assert demo.knob == "gates"
    less, more = (demo.label(PHOTO, knob) for knob in (-1e6, 1e6))
    assert less["density"] == 0.0 < more["density"] == 1.0
    assert less["macs"] < more["macs"] == pytest.approx(more["macs_open"])


def test_large_photos_are_downsized(server):
    large = cv2.imencode(".jpg", np.repeat(np.repeat(IMAGE, 4, 0), 4, 1))[1].tobytes()
    assert label(server, photo=large)["size"] == [32, 40]


@pytest.mark.parametrize(
    ("request_of", "status", "message"),
    [
        (("GET", "/../secret"), 404, "no such address"),
        (("POST", "/label?knob=0", b"no picture"), 422, "corrupt image .*: this file"),
        (("POST", "/label?knob=much", PHOTO), 422, "could not convert"),
        (("POST", "/label", PHOTO), 422, "expected a number of the slider"),
        (("POST", "/other", PHOTO), 400, "expected a photo"),
    ],
)
def test_what_is_refused(server, request_of, status, message):
    found, content, _ = ask(server, *request_of)
    assert found == status
    assert re.search(message, json.loads(content)["error"])


def test_other_hosts_and_origins_are_refused(server):
    own = f"127.0.0.1:{server.server_port}"
    assert ask(server, "GET", "/state", Host=own, Origin=f"http://{own}")[0] == 200
    evil = {"Host": own, "Origin": "http://evil.example"}
    for headers in (evil, {"Host": "evil.example"}, {"Host": "127.0.0.1"}):
        assert ask(server, "GET", "/state", **headers)[0] == 403
        assert ask(server, "POST", "/label?knob=0", PHOTO, **headers)[0] == 403
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("length", [str(MAX_BODY + 1).encode(), b"\xb2", b"-1"])
def test_a_body_of_no_such_length_is_not_read(server, length):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest("POST", "/label?knob=0")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_a_port_that_is_taken(server):
    with pytest.raises(UserError, match=r"--port \d+: .*expected a free one, or 0"):
        DemoServer(server.demo, server.server_port)

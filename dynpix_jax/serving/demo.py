"""The page of `dynpix demo`: a photo, a slider for what a prediction may cost, and what comes of it.

A small web server for one person on this machine: it listens on 127.0.0.1 only and refuses what pages of
other sites ask. It keeps no photo.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import threading
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dynpix_jax.core.capabilities import gate_biases_of
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import Progressive
from dynpix_jax.data.images import read_image
from dynpix_jax.nn.gates import with_shifted_biases
from dynpix_jax.serving.photos import Photo, around_person
from dynpix_jax.serving.predictor import Labelled, Predictor
from dynpix_jax.visualization.pictures import heat_overlay, png_bytes
from dynpix_jax.visualization.task_pictures import task_pictures

PAGE = Path(__file__).with_name("demo.html")
MAX_BODY = 64 * 2**20


class Demo:
    """A network with a knob: the share of its MACs (networks with steps), or a shift of its gates.

    Attributes:
        predictor: The network.
        max_side: Photos with a longer side are downsized.
        knob: ``budget``, ``gates``, or "" where a network has neither.
    """

    def __init__(self, predictor: Predictor, max_side: int = 640) -> None:
        self.predictor, self.max_side = predictor, max_side
        self._biases = tuple(gate_biases_of(predictor.system).values())
        by_steps = isinstance(predictor.system, Progressive)
        self.knob = "budget" if by_steps else "gates" if self._biases else ""
        self._crop = predictor.run.data.eval.source.crop
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """What the page says of the network."""
        found = self.predictor
        return {"name": found.run.name, "tasks": found.tasks, "stage": found.stage, "knob": self.knob}

    def label(self, photo: bytes, knob: float) -> dict[str, Any]:
        """Pictures and numbers of a photo.

        Args:
            photo: The content of a picture's file.
            knob: Share of the MACs in (0, 1], or shift of the gates in logits.

        Raises:
            UserError: Not a picture.
        """
        image = self._read(photo)
        shown = Photo(Path("photo"), "photo", image, image)
        if self._crop is not None:  # a network of people sees them as in training
            shown = around_person(shown, self._crop, None, self.predictor.run.data.train.augment)
        with self._lock:  # one network, one processor
            found = self._predict(shown.image, knob)
        pictures = {}
        for name, prediction in found.predictions.items():
            drawn = task_pictures(self.predictor.system.tasks[name])
            if shown.crop is not None:
                size = (image.shape[0], image.shape[1])
                prediction = drawn.uncropped(prediction, shown.crop.matrix(size), size)
            files = drawn.files(image, prediction)
            pictures[name] = next(files[kind] for kind in ("overlay", "colours", "map") if kind in files)
        if found.ponder:
            pictures["computed"] = heat_overlay(shown.image, found.ponder["total"])
        return {
            "size": image.shape[:2],
            "photo": _data_url(image),
            "pictures": {name: _data_url(picture) for name, picture in pictures.items()},
            "macs": found.macs,
            "macs_open": found.macs_open,
            "milliseconds": found.milliseconds,
            "density": found.density,
            "prediction": found.prediction,
        }

    def _predict(self, image: np.ndarray, knob: float) -> Labelled:
        if self.knob == "budget":
            whole = self.predictor.runner.macs(image.shape[:2]).report.total
            return self.predictor.label(image, budget_macs=max(knob, 1e-6) * whole)
        if self.knob == "gates":  # variables are an argument of the compiled program
            given = self.predictor.variables
            params = with_shifted_biases(given["params"], dict.fromkeys(self._biases, knob))
            self.predictor.runner.variables = {**given, "params": params}
        return self.predictor.label(image)

    def _read(self, photo: bytes) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "photo"
            file.write_bytes(photo)
            try:
                image = read_image(file, upright=True)
            except UserError as error:
                raise UserError(str(error).replace(str(file), "this file")) from None
        height, width = image.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        if scale == 1.0:
            return image
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        smaller: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return smaller


class DemoServer(ThreadingHTTPServer):
    """Serves the page on 127.0.0.1.

    Args:
        demo: The network.
        port: 0 takes a free one.

    Raises:
        UserError: The port is taken, or there is no such port.
    """

    daemon_threads = True

    def __init__(self, demo: Demo, port: int = 0) -> None:
        self.demo = demo
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}; expected a free one, or 0 for any") from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that has moved on hangs up on what it asked for before: no reason to tell anybody."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._own():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path == "/state":
            self._json(HTTPStatus.OK, self.server.demo.state())
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": "no such address"})

    def do_POST(self) -> None:
        if not self._own():
            return
        address = urllib.parse.urlsplit(self.path)
        length = self.headers.get("Content-Length", "")
        if address.path != "/label" or not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # what follows is not read
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"expected a photo of at most {MAX_BODY >> 20} MB"})
            return
        photo = self.rfile.read(int(length))
        try:
            knob = float(urllib.parse.parse_qs(address.query).get("knob", ["nan"])[0])
            if not np.isfinite(knob):
                raise UserError("expected a number of the slider")
            self._json(HTTPStatus.OK, self.server.demo.label(photo, knob))
        except (UserError, ValueError) as error:
            self._json(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})

    def _own(self) -> bool:
        """Another site must not ask, by a name that it lets point here or by a script."""
        port = self.server.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts):
            return True
        self.close_connection = True
        self._json(HTTPStatus.FORBIDDEN, {"error": "only pages of this server may ask it"})
        return False

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; img-src data: blob:")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address and for errors."""


def _data_url(picture: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_bytes(picture)).decode()}"

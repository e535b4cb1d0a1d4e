"""The annotator's page: a small web server for one person on this machine.

It listens on 127.0.0.1 only. Addresses hold numbers of panoramas and nothing else, so no address can name a
file; requests from pages of other sites are refused.
"""

from __future__ import annotations

import collections
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.stanford2d3d import Panorama
from tools.annotate_panorama.points import Point, Points
from tools.annotate_panorama.views import View

PAGE = Path(__file__).with_name("page.html")
_CACHED = 6
_MAX_BODY = 10_000


class AnnotationServer(ThreadingHTTPServer):
    """Serves the page.

    Args:
      panoramas: to annotate.
      points: where clicks are kept.
      port: 0 takes a free one.

    Raises:
      UserError: the port is taken, or there is no such port.
    """

    daemon_threads = True

    def __init__(self, panoramas: Sequence[Panorama], points: Points, port: int = 0) -> None:
        self.panoramas = list(panoramas)
        self.points = points
        self.page = PAGE.read_bytes()
        self._views: collections.OrderedDict[int, View] = collections.OrderedDict()
        self._lock = threading.Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; expected a free one, or 0 for any") from None
        except OverflowError:
            raise UserError(f"--port {port}: expected 0 (any free one) to 65535") from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def view(self, index: int) -> View:
        """The prepared panorama `index`; the last few are kept."""
        with self._lock:
            if index in self._views:
                self._views.move_to_end(index)
                return self._views[index]
        view = View.read(self.panoramas[index])
        with self._lock:
            self._views[index] = view
            while len(self._views) > _CACHED:
                self._views.popitem(last=False)
        return view

    def state(self) -> dict[str, Any]:
        """What the page needs to know at first."""
        points = self.points.all()
        names = [panorama.name for panorama in self.panoramas]
        return {"names": names, "points": [points.get(name) for name in names]}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that has moved on hangs up on what it asked for before: no reason to tell anybody."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: AnnotationServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Any) -> None:
        try:
            self._check_origin()
            kind, content = method()
            status = HTTPStatus.OK
        except _Refused as error:
            status, kind, content = error.status, "application/json", _error(error)
        # OSError: the points cannot be saved.
        except (UserError, OSError) as error:
            status, kind, content = HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", _error(error)
        self._send(status, kind, content)

    def _check_origin(self) -> None:
        """Another site must neither read the pictures (by a name that it lets point here) nor set points."""
        port = self.server.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        # Browsers send it with every POST, and with no GET of a page's own.
        known = self.command != "POST" if origin is None else origin.removeprefix("http://") in hosts
        if self.headers.get("Host") not in hosts or not known:
            self.close_connection = True
            raise _Refused(HTTPStatus.FORBIDDEN, "only pages of this server may ask it")

    def _get(self) -> tuple[str, bytes]:
        try:
            address = urllib.parse.urlsplit(self.path)
        except ValueError:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such address") from None
        if address.path == "/":
            return "text/html; charset=utf-8", self.server.page
        if address.path == "/state":
            return "application/json", json.dumps(self.server.state()).encode()
        match = re.fullmatch(r"/panorama/(\d{1,6})/(photo\.jpg|stored\.png|local\.png|size)", address.path)
        if match is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such address")
        view = self.server.view(self._index(int(match[1])))
        if match[2] == "size":
            return "application/json", json.dumps({"height": view.size[0], "width": view.size[1]}).encode()
        if match[2] == "photo.jpg":
            return "image/jpeg", view.photo
        if match[2] == "stored.png":
            return "image/png", view.stored_picture()
        query = urllib.parse.parse_qs(address.query)
        point = self._point({name: values[0] for name, values in query.items()}, view)
        return "image/png", _checked(view, point)[1]

    def _post(self) -> tuple[str, bytes]:
        body = self._body()
        if self.path == "/undo":
            names = [panorama.name for panorama in self.server.panoramas]
            name = self.server.points.undo(names)
            index = None if name is None else names.index(name)
            return "application/json", json.dumps({"index": index, **self.server.state()}).encode()
        if self.path != "/point":
            raise _Refused(HTTPStatus.NOT_FOUND, "no such address")
        index = self._index(body.get("index"))
        view = self.server.view(index)
        point, _ = _checked(view, self._point(body, view))
        self.server.points.set(self.server.panoramas[index].name, point)
        return "application/json", json.dumps({"point": point}).encode()

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,6}", length) or int(length) > _MAX_BODY:
            self.close_connection = True  # what follows is not read
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected a short body with its length")
        try:
            body = json.loads(self.rfile.read(int(length)) or b"{}")
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected a JSON object")
        return body

    def _index(self, index: Any) -> int:
        if type(index) is not int or not 0 <= index < len(self.server.panoramas):
            raise _Refused(HTTPStatus.NOT_FOUND, f"no panorama {index}")
        return index

    def _point(self, values: dict[str, Any], view: View) -> Point:
        try:
            if bool in (type(values["x"]), type(values["y"])):
                raise TypeError
            x, y = int(values["x"]), int(values["y"])
        except (KeyError, ValueError, TypeError, OverflowError):
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected whole numbers x and y") from None
        height, width = view.size
        if not (0 <= x < width and 0 <= y < height):
            raise _Refused(HTTPStatus.BAD_REQUEST, f"({x}, {y}) is outside of {width} x {height} pixels")
        return x, y

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address and for errors."""


def _error(error: Exception) -> bytes:
    return json.dumps({"error": str(error)}).encode()


def _checked(view: View, point: Point) -> tuple[Point, bytes]:
    """The point and its preview; refused if no upright surface is there."""
    try:
        return point, view.local_picture(point)
    except ValueError as error:
        raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None

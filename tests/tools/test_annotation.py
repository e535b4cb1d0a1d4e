"""The annotation file and its server, by plain HTTP; the page itself is tested in a browser elsewhere."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.locks import Lock
from dynpix_jax.data.panorama import decode_normals, local_normals
from dynpix_jax.data.sources import build_source
from dynpix_jax.data.stanford2d3d import find_panoramas, read_points
from tests.data import panorama_room as room
from tests.data.test_stanford2d3d import NAME, write_panorama
from tools.annotate_panorama.__main__ import main
from tools.annotate_panorama.points import Points
from tools.annotate_panorama.server import AnnotationServer
from tools.annotate_panorama.views import View

# Column 15 of 128 before the north wall: it is ahead at column 113 of half, 226 of the full panorama.
NORTH = 2 * np.pi * 15 / 128
WALL = (226, 64)
FLOOR = (100, 124)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "areas"
    for area in ("3", "5a"):
        write_panorama(root, area, north=NORTH)
    (tmp_path / "secret.txt").write_text("secret")
    return root


@pytest.fixture
def server(source: Path, tmp_path: Path) -> Iterator[AnnotationServer]:
    with AnnotationServer(find_panoramas(source, ("3", "5a")), Points(tmp_path / "points.json")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: AnnotationServer, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    if method == "POST":
        headers = {"Origin": server.url.rstrip("/")} | headers
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_points_are_saved_resumed_and_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    points = Points(path)
    assert points.undo("ab") is None
    points.set("a", (1, 2))
    points.set("b", (3, 4))
    points.set("a", (5, 6))
    assert read_points(path) == {"a": (5, 6), "b": (3, 4)}
    again = Points(path)
    assert again.all() == {"a": (5, 6), "b": (3, 4)}
    # Of what is shown alone: a run with other areas takes nothing back that nobody sees.
    assert [again.undo(["b"]), again.undo(["b"]), again.undo(["c"])] == ["b", None, None]
    assert read_points(path) == again.all() == {"a": (5, 6)}
    again.set("b", (7, 8))
    assert [again.undo("ab"), again.undo("ab")] == ["b", "a"]
    assert read_points(path) == again.all() == {"a": (1, 2)}
    assert [again.undo("ab"), again.undo("ab")] == ["a", None]
    assert read_points(path) == {}
    assert os.listdir(tmp_path) == ["points.json"]


def fail(*_: object) -> None:
    raise OSError("disk full")


def test_a_run_that_dies_while_saving_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "points.json"
    points = Points(path)
    points.set("a", (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr("tools.annotate_panorama.points.os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            points.set("b", (3, 4))
        with pytest.raises(OSError, match="disk full"):
            points.undo("a")
    # What was not saved has not happened, also if the run goes on.
    assert read_points(path) == points.all() == {"a": (1, 2)}
    assert points.undo("ab") == "a"


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--out: folder not found: .*none"):
        Points(tmp_path / "none" / "points.json")
    path = tmp_path / "points.json"
    path.write_text('{"points": 3}')
    with pytest.raises(UserError, match=r"points\.json: expected"):
        Points(path)
    for history in ("3", '["a"]', '[["a", 4]]', '[["a", [1]]]'):
        path.write_text(f'{{"points": {{}}, "history": {history}}}')
        with pytest.raises(UserError, match=r'points\.json: expected "history"'):
            Points(path)
    path.write_text('{"points": {"a": [1, 2]}}')
    assert Points(path).all() == {"a": (1, 2)}
    with pytest.raises(UserError, match=r"--out: .* is a folder; expected a file"):
        Points(tmp_path)


@pytest.mark.parametrize("shown", [256, 128])
def test_previews_show_the_turned_normals(source: Path, shown: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.annotate_panorama.views.SHOWN_WIDTH", shown)
    view = View.read(find_panoramas(source, ("3",))[0])
    assert view.size == (128, 256)
    _, normals = room.room(NORTH)
    local = local_normals(view.normals, view.angle_at(WALL), view.axes)
    local = local[:: shown // 128, :: shown // 128]
    assert room.angles(local, room.seen(normals, NORTH)).max() < 1
    picture = cv2.imdecode(np.frombuffer(view.local_picture(WALL), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (shown // 2, shown, 3)
    shown_normals = decode_normals(picture[:: shown // 128, :: shown // 128]) * [1, -1, -1]
    plain = shown_normals.any(-1)
    angles = room.angles(shown_normals, room.seen(normals, NORTH))[plain]
    # All but the bands, which are yellow and no vectors of unit length or others.
    assert np.quantile(angles, 0.9) < 1
    stored = cv2.imdecode(np.frombuffer(view.stored_picture(), np.uint8), cv2.IMREAD_COLOR_RGB)
    red, green, blue = stored[WALL[1] * shown // 256, WALL[0] * shown // 256]
    assert min(red, green) > 140 > 110 > blue  # the canonical point lies in a yellow band
    with pytest.raises(ValueError, match="no upright surface"):
        view.local_picture(FLOOR)


def test_the_source_turns_by_a_point_as_its_preview_does(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However coarse the preview: what it shows is what is trained on, what it takes is not refused."""
    monkeypatch.setattr("tools.annotate_panorama.views.SHOWN_WIDTH", 32)
    (panorama,) = find_panoramas(source, ("3",))
    picture = cv2.imread(str(panorama.path("normal")))
    picture[56:68, 218:230] = 128  # a hole in the wall, a pixel or two of what is shown
    cv2.imwrite(str(panorama.path("normal")), picture)
    write_panorama(source, "4", north=NORTH)  # the other area of the split
    view, out = View.read(panorama), tmp_path / "points.json"
    section = {"name": "stanford2d3d", "root": str(source), "fields": ("normals",), "points": str(out)}
    for point in ((234, 52), (231, 64)):
        Points(out).set(panorama.name, point)
        angle = view.angle_at(point)
        local = local_normals(decode_normals(picture[::2, ::2, ::-1]), angle, view.axes)[10:54]
        np.testing.assert_allclose(build_source(section, "val")[0]["normals"], local, atol=1e-6)
    Points(out).set(panorama.name, (223, 62))
    with pytest.raises(UserError, match="no upright surface there"):
        build_source(section, "val")[0]
    with pytest.raises(ValueError, match="no upright surface there"):
        view.angle_at((223, 62))


def test_click_preview_undo(server: AnnotationServer, tmp_path: Path) -> None:
    status, page = ask(server, "GET", "/")
    assert status == 200
    assert b"<!doctype html>" in page
    status, state = ask(server, "GET", "/state")
    assert json.loads(state) == {"names": [f"area_3/{NAME}", f"area_5a/{NAME}"], "points": [None, None]}
    assert json.loads(ask(server, "GET", "/panorama/1/size")[1]) == {"height": 128, "width": 256}
    assert ask(server, "GET", "/panorama/1/photo.jpg")[1][:3] == b"\xff\xd8\xff"
    assert ask(server, "GET", "/panorama/1/stored.png")[1][:4] == b"\x89PNG"
    status, answer = ask(server, "POST", "/point", {"index": 1, "x": WALL[0], "y": WALL[1]})
    assert (status, json.loads(answer)) == (200, {"point": list(WALL)})
    assert read_points(tmp_path / "points.json") == {f"area_5a/{NAME}": WALL}
    status, preview = ask(server, "GET", f"/panorama/1/local.png?x={WALL[0]}&y={WALL[1]}")
    assert preview == server.view(1).local_picture(WALL)
    assert json.loads(ask(server, "GET", "/state")[1])["points"] == [None, list(WALL)]
    status, answer = ask(server, "POST", "/undo", {})
    assert json.loads(answer)["index"] == 1
    assert json.loads(answer)["points"] == [None, None]
    assert json.loads(ask(server, "POST", "/undo", {})[1])["index"] is None
    assert read_points(tmp_path / "points.json") == {}


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/panorama/../../secret.txt"),
        *("/etc/passwd", "//etc/passwd", "/panorama//etc/passwd/size", "/panorama/0/../1/size"),
        *(
            "/panorama/-1/size",
            "/panorama/2/size",
            "/panorama/0/photo.jpg/",
            "/panorama/0/rgb",
            "/points.json",
        ),
        *("/page.html", "/panorama/0/size%00", "/panorama/0/local.png/../size"),
        *("x://[/etc/passwd", "file:///etc/passwd", "../secret.txt"),
    ],
)
def test_nothing_else_is_served(server: AnnotationServer, path: str) -> None:
    status, body = ask(server, "GET", path)
    assert status == 404
    assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"index": 0, "x": FLOOR[0], "y": FLOOR[1]}, 422, "no upright surface there"),
        ({"index": 0, "x": 256, "y": 3}, 400, "outside of 256 x 128"),
        ({"index": 0, "x": -1, "y": 3}, 400, "outside"),
        ({"index": 0, "x": 3}, 400, "expected whole numbers x and y"),
        ({"index": 2, "x": 3, "y": 3}, 404, "no panorama 2"),
        ({"index": "../0", "x": 3, "y": 3}, 404, "no panorama"),
        ({"index": True, "x": 3, "y": 3}, 404, "no panorama True"),
        ({"index": 1, "x": True, "y": 3}, 400, "expected whole numbers x and y"),
        (b'{"index": 0, "x": Infinity, "y": 3}', 400, "expected whole numbers x and y"),
        (b"[" * 9_000, 400, "expected a JSON object"),
        ([1], 400, "expected a JSON object"),
        (b"{", 400, "expected a JSON object"),
        (b" " * 20_000, 400, "short body"),
    ],
)
def test_wrong_clicks_are_refused(
    server: AnnotationServer, tmp_path: Path, body: object, status: int, message: str
) -> None:
    found, answer = ask(server, "POST", "/point", body)
    assert found == status
    assert message in json.loads(answer)["error"]
    assert not (tmp_path / "points.json").exists()


def test_a_point_that_cannot_be_saved_is_told(
    server: AnnotationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.annotate_panorama.points.os.fsync", fail)
    status, answer = ask(server, "POST", "/point", {"index": 1, "x": WALL[0], "y": WALL[1]})
    assert (status, json.loads(answer)) == (500, {"error": "disk full"})
    assert json.loads(ask(server, "GET", "/state")[1])["points"] == [None, None]


def test_a_page_that_hangs_up_is_no_error(
    server: AnnotationServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, told in ((BrokenPipeError(), False), (ConnectionResetError(), False), (KeyError(), True)):
        try:
            raise error
        except (OSError, KeyError):
            server.handle_error(None, ("127.0.0.1", 1))
        assert bool(capsys.readouterr().err) == told


def test_other_sites_are_refused(server: AnnotationServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert ask(server, "GET", "/state", **headers)[0] == 403
        assert ask(server, "POST", "/undo", {}, **headers)[0] == 403
    assert ask(server, "GET", "/state", Origin=server.url.rstrip("/"))[0] == 200
    for origin, status in ((server.url.rstrip("/"), 200), (None, 403)):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.request("POST", "/undo", b"{}", {} if origin is None else {"Origin": origin})
        assert connection.getresponse().status == status
        connection.close()
    assert ask(server, "POST", "/undo", {}, **{"Content-Length": "\xb2"})[0] == 400


def test_two_servers_of_one_file(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "points.json"
    with Lock(tmp_path / "points.json.lock", "", ""):
        assert main([f"--source={source}", f"--out={out}"]) == 2
    assert f"--out {out} is in use by process {os.getpid()}" in capsys.readouterr().err


def test_broken_panorama_is_told(server: AnnotationServer) -> None:
    server.panoramas[0].path("normal").unlink()
    status, answer = ask(server, "GET", "/panorama/0/size")
    assert status == 500
    assert "file not found" in json.loads(answer)["error"]
    # Without depth the bands are a guess, and that is all.
    server.panoramas[1].path("depth").unlink()
    assert ask(server, "GET", "/panorama/1/stored.png")[0] == 200


def test_command(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(self: AnnotationServer) -> None:
        self.points.set(f"area_3/{NAME}", WALL)
        raise KeyboardInterrupt

    monkeypatch.setattr(AnnotationServer, "serve_forever", serve)
    out = tmp_path / "points.json"
    assert main(["--source", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 panoramas at http://127.0.0.1:" in printed
    assert "1 of 2 panoramas have a point in" in printed
    for arguments, message in (
        (["--source", str(tmp_path)], "no folder area_1 to area_6 in"),
        (["--source", str(source), "--area", "7"], "folder not found"),
        (["--source", str(source), "--port", "99999"], "--port 99999: expected 0 (any free one) to 65535"),
    ):
        assert main([*arguments, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_taken_port_is_told(server: AnnotationServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--port {server.server_port}: .*expected a free one"):
        AnnotationServer(server.panoramas, Points(tmp_path / "b.json"), server.server_port)

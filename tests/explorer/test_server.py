"""What the server gives, and to whom it gives nothing."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator

import numpy as np
import pytest

from orchestrator.explorer.guard import Door, is_known_host, make_door
from orchestrator.explorer.serve import Served, serve
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import read_annotations
from trainables.errors import StudyError

JSON = {"Content-Type": "application/json"}


def ask(
    served: Served, path: str, *, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Send a path as it is: a client library would tidy it first."""
    address = urllib.parse.urlsplit(served.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_columns_come_as_plain_bytes(served: Served, explored: ExploredStudy) -> None:
    status, body, headers = ask(served, "/api/trials/0/arrays/predicted")
    assert status == 200
    assert np.array_equal(np.frombuffer(body, "<u2"), explored.open(0).array("predicted"))
    assert headers["content-type"] == "application/octet-stream"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert json.loads(ask(served, "/api/trials/0")[1])["num_points"] == explored.open(0).index.num_points


def test_images_are_those_of_the_data_set_unshifted_and_as_the_model_saw_them(
    served: Served, explored: ExploredStudy
) -> None:
    from io import BytesIO

    from PIL import Image

    test = explored.open(0).index.sets[0]
    stored = explored.images.open_set(explored.trials[0].signature, "test").images[3]
    shift = test.shifts.index("contrast_down/5")
    for position, equal in ((0, True), (shift, False)):
        status, body, headers = ask(
            served, f"/api/trials/0/images/{test.first_point + position * test.count + 3}?side=96"
        )
        assert (status, headers["content-type"]) == (200, "image/png")
        pixels = np.moveaxis(np.asarray(Image.open(BytesIO(body))), 2, 0)
        assert pixels.shape == stored.shape
        assert np.array_equal(pixels, stored) == equal
    assert pixels.std() < 0.7 * stored.std()  # less contrast


def test_an_attribution_is_that_of_the_stored_weights_for_the_pixels_that_the_model_saw(
    served: Served, explored: ExploredStudy
) -> None:
    from io import BytesIO

    import torch
    from PIL import Image

    from orchestrator.explorer.attributions import TITLES, colour_attribution
    from orchestrator.explorer.images import paint_shifted
    from trainables.evaluation.attribution.compute import compute_attribution
    from trainables.evaluation.attribution.methods import ATTRIBUTION_METHODS
    from trainables.exported.folder import build_exported

    assert {name: each.title for name, each in ATTRIBUTION_METHODS.items()} == TITLES
    test, signature = explored.open(0).index.sets[0], explored.trials[0].signature
    model = build_exported(
        explored.ledger.folder("trial", signature),
        explored.images.config(signature),
        classes=explored.open(0).index.classes,
        provenance={},
    ).network
    position = test.shifts.index("contrast_down/5")
    pixels = torch.from_numpy(paint_shifted(explored.images, signature, "test", [3], "contrast_down/5"))
    point = test.first_point + position * test.count + 3
    for method in TITLES:
        status, body, headers = ask(served, f"/api/trials/0/attributions/{point}/{method}/1")
        assert (status, headers["content-type"]) == (200, "image/png"), body
        picture = np.asarray(Image.open(BytesIO(body)))
        assert picture.shape == (*pixels.shape[2:], 4)
        if method == "expected_gradients":
            continue  # its references are drawn by the explorer
        expected = compute_attribution(model, pixels, torch.tensor([1]), method=method).numpy()[0]
        assert body == colour_attribution(expected)
    kept = sorted((explored.cache_dir / "explorer/attributions").iterdir())
    assert ask(served, f"/api/trials/0/attributions/{point}/grad_cam/1")[0] == 200
    assert sorted((explored.cache_dir / "explorer/attributions").iterdir()) == kept  # by content: found again
    for path in ("grad_cam/2", "saliency/1", "..%2fx/1", "grad_cam/-1"):
        assert ask(served, f"/api/trials/0/attributions/{point}/{path}")[0] == 404


def test_without_stored_weights_there_is_no_attribution_and_the_reason_is_said(explored: ExploredStudy) -> None:
    from orchestrator.explorer.attributions import Attributor

    signature = explored.trials[1].signature
    folder = explored.ledger.folder("trial", signature)
    weights = folder.read("model.safetensors")
    folder.remove("model.safetensors")
    try:
        with pytest.raises(StudyError, match="the weights of this trial are not stored any more"):
            Attributor(explored.images, explored.cache_dir).draw(
                signature, "test", 0, "identity/0", method="grad_cam", target=0
            )
    finally:
        folder.write("model.safetensors", weights)


def test_colours_show_the_sign_and_opacity_the_strength() -> None:
    from io import BytesIO

    from PIL import Image

    from orchestrator.explorer.attributions import colour_attribution

    values = np.zeros((20, 20), dtype=np.float32)
    values[:10], values[10:, :5] = 2.0, -1.0
    picture = np.asarray(Image.open(BytesIO(colour_attribution(values))))
    assert set(picture[:10, :, 3].ravel()) == {255}
    assert set(picture[10:, :5, 3].ravel()) == {128}
    assert set(picture[10:, 5:, 3].ravel()) == {0}
    assert picture[0, 0, 0] > picture[0, 0, 2]  # warm
    assert picture[10, 0, 0] < picture[10, 0, 2]
    assert np.asarray(Image.open(BytesIO(colour_attribution(0 * values))))[..., 3].max() == 0


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/cli/main.py",
        "/static//etc/passwd",
        "/static/..%5capp.py",
        "/static/app.js%00.css",
        "/api/trials/0/images/../../../plan.json",
        "/api/trials/0/images/..%2f..%2fplan.json",
        "/api/trials/0/images/1.5",
        "/api/trials/0/images/-1",
        "/api/trials/0/images/99999999999999999999",
        "/api/trials/99/images/0",
        "/api/trials/0/arrays/..%2findex.json",
        "/api/trials/0/arrays/logits-0",
        "/api/trials/0/arrays/score/999",
        "/api/trials/0/arrays/features/0",
        "/plan.json",
        "/annotations.json",
    ],
)
def test_nothing_but_the_page_and_numbered_images_can_be_requested(served: Served, path: str) -> None:
    status, body, _ = ask(served, path)
    assert status == 404
    assert b"def " not in body
    assert b"study_sha256" not in body


@pytest.mark.parametrize(("side", "status"), [("abc", 400), ("-5", 400), ("", 400), ("1e3", 400), ("9" * 400, 200)])
def test_a_side_that_is_no_number_is_refused(served: Served, side: str, status: int) -> None:
    assert ask(served, f"/api/trials/0/images/0?side={side}")[0] == status


def test_a_link_in_the_cache_or_the_study_opens_nothing(served: Served, explored: ExploredStudy) -> None:
    folder = explored.open(0).folder
    (folder / "score-77.npy").symlink_to("/etc/passwd")
    try:
        assert ask(served, "/api/trials/0/arrays/score/77")[0] == 404
    finally:
        (folder / "score-77.npy").unlink()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "169.254.1.1"])
def test_another_host_name_is_refused(served: Served, host: str) -> None:
    """DNS rebinding: a page of evil.example whose name comes to resolve to 127.0.0.1."""
    for path in ("/", "/api/study", "/static/app.js"):
        assert ask(served, path, headers={"Host": host})[0] == 421


def test_names_of_the_server_itself_are_known() -> None:
    local, bound = Door("127.0.0.1", None), Door("0.0.0.0", "token")
    assert all(is_known_host(host, local) for host in ("127.0.0.1:80", "localhost", "[::1]:80"))
    assert is_known_host("192.0.2.7:8000", bound)
    assert not is_known_host("192.0.2.7:8000", local)
    assert not is_known_host("evil.example", bound)


def test_bound_to_this_machine_alone_there_is_no_token_elsewhere_there_is() -> None:
    assert make_door("127.0.0.1").token is None
    tokens = {make_door("0.0.0.0").token for _ in range(5)}
    assert len(tokens) == 5
    assert all(token is not None and len(token) >= 32 for token in tokens)


@pytest.fixture
def open_to_all(explored: ExploredStudy) -> Iterator[Served]:
    """A server bound to all addresses, of the same study."""
    again = ExploredStudy(explored.ledger, explored.cache_dir)
    with serve(again, host="0.0.0.0") as found:
        yield found


def test_bound_elsewhere_nothing_is_given_without_the_token(open_to_all: Served) -> None:
    address = urllib.parse.urlsplit(open_to_all.url)
    local = Served(f"http://127.0.0.1:{address.port}/", open_to_all.stop, open_to_all.wait)
    token = urllib.parse.parse_qs(address.query)["token"][0]
    for path in ("/", "/api/study", "/static/app.js", "/?token=wrong", "/?token="):
        assert ask(local, path)[0] == 403
    status, _, headers = ask(local, f"/?token={token}")
    assert status == 200
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(local, "/api/study", headers={"Cookie": cookie.partition(";")[0]})[0] == 200
    assert ask(local, "/api/study", headers={"Cookie": "robustsweep-explorer=wrong"})[0] == 403


def test_notes_are_written_to_the_ledger(served: Served, explored: ExploredStudy) -> None:
    note = {"trial": 0, "point": 5, "note": "a hair over the lesion", "label_is_wrong": True}
    status, body, _ = ask(served, "/api/notes", method="POST", body=json.dumps(note).encode(), headers=JSON)
    assert status == 200
    (saved,) = read_annotations(explored.ledger.root)
    assert (saved.set_name, saved.image, saved.note, saved.label_is_wrong) == (
        "test", explored.open(0).ids[5], "a hair over the lesion", True,
    )  # fmt: skip
    assert json.loads(body) == json.loads(ask(served, "/api/notes")[1])
    again = json.dumps(note | {"note": "", "label_is_wrong": False}).encode()
    ask(served, "/api/notes", method="POST", body=again, headers=JSON)
    assert read_annotations(explored.ledger.root) == []


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),  # what a form of another page can send
        (JSON | {"Origin": "http://evil.example"}, b"{}", 403),
        (JSON, b"not json", 400),
        (JSON, b'{"trial": 0, "point": true, "note": "", "label_is_wrong": false}', 400),
        (JSON, b'{"trial": 0, "point": 1000000, "note": "", "label_is_wrong": false}', 404),
        (JSON, b'{"note": "' + b"x" * 100_000 + b'"}', 413),
    ],
)
def test_no_other_page_and_nothing_malformed_writes_a_note(
    served: Served, explored: ExploredStudy, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert ask(served, "/api/notes", method="POST", body=body, headers=headers)[0] == status
    assert read_annotations(explored.ledger.root) == []


def test_a_port_that_is_taken_is_an_error(served: Served, explored: ExploredStudy) -> None:
    port = urllib.parse.urlsplit(served.url).port
    with pytest.raises(StudyError, match="choose another"), serve(explored, port=port):
        raise AssertionError("it was bound twice")


def test_the_server_holds_neither_torch_nor_scikit_learn() -> None:
    """They are half a GiB; what needs them runs in processes of its own."""
    code = (
        "import sys, orchestrator.explorer.serve, orchestrator.explorer.export, trainables.data.load\n"
        "print(sorted({'torch', 'sklearn', 'scipy', 'pandas', 'mlflow', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

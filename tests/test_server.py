"""The server over real connections: TensorFlow Serving's predict interface, and what can be wrong with a request."""

import base64
import contextlib
import gzip
import http.client
import io
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest
from PIL import Image, ImageOps

pytest.importorskip("starlette", reason="the packages of r2c-gan[serve] are not installed")
pytest.importorskip("uvicorn", reason="the packages of r2c-gan[serve] are not installed")
pytest.importorskip("orjson", reason="the packages of r2c-gan[serve] are not installed")

from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.models.model import R2CGAN
from r2c_gan.serving import export, server

PREDICT = "/v1/models/r2c_gan:predict"
MAX_BODY = 200_000
MAX_PIXELS = 16 * 16 * 12


@pytest.fixture(scope="module")
def model():
    return R2CGAN(filters=3, channels=1, image_size=16)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "saved_model"
    export.export_saved_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def served(exported):
    return server.ServedModel(exported, MAX_PIXELS)


@pytest.fixture(scope="module")
def address(served):
    with server.Server(server.application(served, max_body=MAX_BODY), port=0).in_background() as url:
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def png():
    return cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8))[1].tobytes()


def call(address, method, path, body=None):
    """(status, JSON of the answer, its headers)."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def assert_refused(answer, status, *parts):
    found, body, _ = answer
    assert found == status and list(body) == ["error"], (found, body)
    for part in parts:
        assert part in body["error"]


def test_rows_of_pixels(address, model):
    batch = np.random.default_rng(0).uniform(-1, 1, (2, 8, 6, 1)).astype("float32")
    restored, probabilities = model.restorer(batch)
    for instances in (batch.tolist(), [{"image": image} for image in batch.tolist()]):
        status, body, headers = call(address, "POST", PREDICT, {"instances": instances})
        assert status == 200 and headers["Content-Type"] == "application/json"
        assert list(body) == ["predictions"] and len(body["predictions"]) == 2
        np.testing.assert_allclose([row["restored"] for row in body["predictions"]], restored, atol=1e-5)
        np.testing.assert_allclose([row["probabilities"] for row in body["predictions"]], probabilities, atol=1e-5)


def test_columns_of_pixels(address, model):
    batch = np.random.default_rng(1).uniform(-1, 1, (3, 4, 4, 1)).astype("float32")
    for inputs in (batch.tolist(), {"image": batch.tolist()}):
        status, body, _ = call(address, "POST", PREDICT, {"inputs": inputs, "signature_name": "serving_default"})
        assert status == 200 and list(body) == ["outputs"]
        assert set(body["outputs"]) == {"restored", "probabilities"}
        np.testing.assert_allclose(body["outputs"]["restored"], model.restorer(batch)[0], atol=1e-5)


def test_answers_say_what_is_unlike_the_films(exported, png):
    class Films:
        def score(self, image):
            return float(abs(image).max()) * 2

    served = server.ServedModel(exported, MAX_PIXELS)
    assert served.films is None
    served.films = Films()
    batch = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 8, 6, 1))
    batch[1, 0, 0] = 0.75
    usual, odd = json.loads(served.predict(json.dumps({"instances": batch.tolist()}).encode()))["predictions"]
    assert usual["unlikeness"] < 1 and usual["warning"] == ""
    assert odd["unlikeness"] == 1.5 and odd["warning"].startswith("unlike the films that the model was trained on")
    blank = cv2.imencode(".png", np.full((9, 9), 70, np.uint16))[1].tobytes()
    body = {"signature_name": "serve_rest", "inputs": [b64(png), b64(blank)]}
    outputs = json.loads(served.predict(json.dumps(body).encode()))["outputs"]
    assert outputs["unlikeness"][0] == 2 and outputs["unlikeness"][1] == pytest.approx(2, abs=0.01)
    assert outputs["warning"][1] == "blank: all pixels have one value"


@pytest.mark.parametrize("signature, output", [("serve_encoded", "restored_png"), ("serve_rest", "restored_png_bytes")])
@pytest.mark.parametrize("form", ["bare rows", "named rows", "bare columns", "named columns"])
def test_encoded_images(signature, output, form, address, model, png, tmp_path):
    values = [b64(png)] * 2
    if form == "named rows":
        values = [{"encoded": value} for value in values]
    if form == "named columns":
        values = {"encoded": values}
    by_row = "rows" in form
    request = {"signature_name": signature, "instances" if by_row else "inputs": values}
    status, body, _ = call(address, "POST", PREDICT, request)
    assert status == 200
    first = body["predictions"][1] if by_row else {name: column[1] for name, column in body["outputs"].items()}
    (tmp_path / "image.png").write_bytes(png)
    restored, probabilities = model.restorer(images.resize(images.read_image(tmp_path / "image.png"), 16, 16)[None])
    assert set(first) == {output, "probabilities", "label"}
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(first[output]["b64"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.abs(decoded.astype(int) - images.to_uint(restored)[0, ..., 0].astype(int)).max() <= 1
    np.testing.assert_allclose(first["probabilities"], probabilities[0], atol=1e-4)
    assert first["label"] == ("control", "covid")[int(np.argmax(probabilities))]


@pytest.mark.parametrize("path", ["/v1/models/r2c_gan", "/v1/models/r2c_gan/versions/1"])
def test_status_and_metadata(path, address):
    assert call(address, "GET", path)[:2] == (
        200,
        {
            "model_version_status": [
                {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        },
    )
    status, body, _ = call(address, "GET", f"{path}/metadata")
    assert status == 200 and body["model_spec"] == {"name": "r2c_gan", "signature_name": "", "version": "1"}
    signatures = body["metadata"]["signature_def"]["signature_def"]
    encoded = signatures["serve_encoded"]
    assert encoded["inputs"]["encoded"]["dtype"] == "DT_STRING"
    assert encoded["inputs"]["encoded"]["tensor_shape"]["dim"][0]["size"] == "-1"
    assert set(encoded["outputs"]) == {"restored_png", "probabilities", "label"}
    assert encoded["method_name"] == "tensorflow/serving/predict"
    assert {"serving_default", "serve_rest"} < set(signatures)


def test_addresses_that_are_not_there(address):
    assert_refused(call(address, "GET", "/v1/models/other"), 404, "no model 'other'")
    assert_refused(call(address, "GET", "/v1/models/r2c_gan/versions/2"), 404, "no version '2'")
    assert_refused(call(address, "POST", "/v1/models/other:predict", {}), 404, "no model 'other'")
    assert_refused(call(address, "GET", "/elsewhere"), 404, "/elsewhere")
    assert_refused(call(address, "POST", "/v1/models/r2c_gan/metadata", {}), 405)


def request_of(value, **others):
    return {"signature_name": "serve_encoded", "instances": value, **others}


def picture():
    y, x = np.mgrid[:40, :64]
    noise = np.random.default_rng(0).normal(0, 15, (40, 64))
    return np.clip(3 * x + 2 * np.sin(y) + noise, 0, 255).astype(np.uint8)


def jpeg():
    return cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def test_an_image_that_the_graph_would_mend_is_refused(address):
    whole = jpeg()
    assert call(address, "POST", PREDICT, request_of([b64(whole)]))[0] == 200
    cut = whole[: len(whole) // 2].rstrip(b"\xff") + b"\xff\xd9"
    answer = call(address, "POST", PREDICT, request_of([b64(whole), b64(cut)]))
    assert_refused(answer, 400, "encoded[1]: truncated JPEG")
    palette = Image.fromarray(picture() % 2 + 3).convert("P")
    palette.putpalette(bytes(range(12)))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", bits=8)
    data = buffer.getvalue()
    at = data.index(b"PLTE")
    length = int.from_bytes(data[at - 4 : at])
    short = b"PLTE" + data[at + 4 : at + 10]  # two colours, where the pixels name others
    short = struct.pack(">I", 6) + short + struct.pack(">I", zlib.crc32(short))
    answer = call(address, "POST", PREDICT, request_of([b64(data[: at - 4] + short + data[at + 8 + length :])]))
    assert_refused(answer, 400, "encoded[0]: damaged PNG (colour ")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_is_applied(address, orientation):
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
    plain = jpeg()
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    buffer = io.BytesIO()
    upright.save(buffer, "PNG")
    sent = [call(address, "POST", PREDICT, request_of([b64(data)])) for data in (turned, buffer.getvalue(), plain)]
    assert sent[0][:2] == sent[1][:2] and (sent[0][1] == sent[2][1]) == (orientation == 1)


def test_values_in_the_wrong_range_are_warned_of(address):
    batch = np.random.default_rng(0).uniform(0, 1, (2, 8, 6, 1))
    _, body, _ = call(address, "POST", PREDICT, {"inputs": batch.tolist()})
    assert all("images are in [-1, 1]" in warning for warning in body["outputs"]["warning"])
    for right in (batch - 0.5, 0 * batch):
        assert "warning" not in call(address, "POST", PREDICT, {"inputs": right.tolist()})[1]["outputs"]


BAD = {
    "not JSON": (b"{", "JSON parse error"),
    "nothing": (b"", "JSON parse error"),
    "not UTF-8": (b'{"instances": ["\xff"]}', "JSON parse error"),
    "nested deep": (b'{"instances":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "JSON parse error"),
    "NaN": (b'{"instances": [[[[NaN]]]]}', "JSON parse error"),
    "a list": ([], "must be a JSON object"),
    "neither form": ({}, "either 'instances'"),
    "both forms": ({"instances": [], "inputs": []}, "either 'instances'"),
    "an unknown key": ({"instances": [], "batch": 1}, "unknown key 'batch'"),
    "no such signature": ({"signature_name": "classify", "instances": []}, "there are serve_encoded, serve_rest"),
    "a signature that is no name": ({"signature_name": ["serve_encoded"], "instances": []}, "no signature"),
    "rows that are no list": (request_of({"a": 1}), "must be a list"),
    "another input": (request_of([{"picture": b64(b"")}]), "the only input is 'encoded', not 'picture'"),
    "columns that are no list": ({"inputs": {"image": 5}}, "must be a list"),
    "no images": (request_of([]), "nothing in it"),
    "a number for bytes": (request_of([5]), 'bytes are given as {"b64"'),
    "base64 that is none": (request_of([{"b64": "?"}]), "not base64"),
    "base64 that is cut off": (request_of([{"b64": "AAAAA"}]), "not base64"),
    "not an image": (request_of([b64(b"text")]), "not the bytes of a PNG or JPEG"),
    "text for pixels": ({"instances": [[["a"]]]}, "not an array of numbers"),
    "booleans for pixels": ({"instances": [[[[True]]]]}, "not an array of numbers"),
    "ragged pixels": ({"instances": [[[1], [1, 2]]]}, "not an array of numbers"),
    "objects for pixels": ({"instances": [[{"a": 1}]]}, "not an array of numbers"),
    "a wrong rank": ({"instances": [1, 2]}, "of shape [2]; [any, any, any, 1] is needed"),
    "wrong channels": ({"instances": np.zeros((1, 4, 4, 3)).tolist()}, "of shape [1, 4, 4, 3]"),
    "an odd size": ({"instances": np.zeros((1, 4, 5, 1)).tolist()}, "4 x 5 pixels; height and width must be multiples"),
    "8-bit levels": ({"instances": np.full((1, 4, 4, 1), 255).tolist()}, "values from 255 to 255; images are in"),
    "too large a number": ({"instances": np.full((1, 4, 4, 1), 1e300).tolist()}, "not finite"),
    "no pixels": ({"instances": [[]]}, "image: of shape"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests(kind, address):
    body, message = BAD[kind]
    assert_refused(call(address, "POST", PREDICT, body), 400, message)


def test_a_bad_image_fails_its_own_request_alone(address, png):
    """Sent at once, over and over, from several clients."""
    found = []

    def work(body, expected):
        for _ in range(5):
            found.append((call(address, "POST", PREDICT, body)[0], expected))

    bodies = [(request_of([b64(png)]), 200), (request_of([b64(png), b64(png[:80])]), 400)] * 3
    threads = [threading.Thread(target=work, args=arguments) for arguments in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and all(status == expected for status, expected in found)


def test_limits(address, png):
    assert_refused(call(address, "POST", PREDICT, b"[" + b" " * MAX_BODY), 413, f"larger than {MAX_BODY} bytes")
    assert_refused(call(address, "POST", PREDICT, b" " * (3 * MAX_BODY)), 413)
    assert call(address, "POST", PREDICT, request_of([b64(png)] * 12))[0] == 200
    assert_refused(call(address, "POST", PREDICT, request_of([b64(png)] * 13)), 413, "13 images of 16 x 16")
    wide = np.zeros((1, 2, MAX_PIXELS, 1), int).tolist()
    assert_refused(call(address, "POST", PREDICT, {"instances": wide}), 413, "at most 3072 a request")


def one_bit_png(width, height):
    """A PNG whose pixels are all 0, by hand: 1,000 times as many as it has bytes."""
    packed = zlib.compressobj(9)
    rows = b"".join([*(packed.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)), packed.flush()])

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pixels_are_counted_before_they_are_decoded(exported):
    served = server.ServedModel(exported, MAX_PIXELS, max_decoded=1_000_000)
    jpeg = cv2.imencode(".jpg", np.zeros((500, 400), np.uint8))[1].tobytes()
    small, huge = one_bit_png(800, 1000), one_bit_png(30_000, 30_000)[:33]  # of the huge one the header alone
    for images_, pixels in (([small] * 2, 1_600_000), ([small, jpeg, b""], None), ([jpeg] * 6, 1_200_000)):
        body = json.dumps(request_of([b64(image) for image in images_])).encode()
        with pytest.raises(server.RequestError) as caught:
            served.predict(body)
        expected = (400, "not the bytes") if pixels is None else (413, f"{pixels} pixels in all files; at most 1000000")
        assert caught.value.status == expected[0] and expected[1] in str(caught.value)
    assert b"label" in served.predict(json.dumps(request_of([b64(small), b64(jpeg)])).encode())
    with pytest.raises(server.RequestError, match="900000000 pixels"):
        served.predict(json.dumps(request_of([b64(huge)])).encode())


def post(address, body, **headers):
    with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", PREDICT, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers


def test_what_tensorflow_serving_takes(address, png):
    """Bodies compressed by gzip, base64 with line breaks or without its padding, an empty name of the signature."""
    plain = json.dumps(request_of([b64(png)])).encode()
    expected = call(address, "POST", PREDICT, plain)[1]
    assert post(address, gzip.compress(plain), Content_Encoding="gzip")[:2] == (200, expected)
    members = b"".join(gzip.compress(part) for part in (plain[:50], b"", plain[50:]))  # as RFC 1952 allows
    assert post(address, members, Content_Encoding="gzip")[:2] == (200, expected)
    text = base64.encodebytes(png + b"\0").decode()  # what follows the end of a PNG is left alone
    assert "\n" in text and text.rstrip().endswith("=")
    for form in (text, text.replace("\n", "\r\n "), text.rstrip("=\n")):
        assert call(address, "POST", PREDICT, request_of([{"b64": form}]))[:2] == (200, expected)
    zeros = np.zeros((1, 4, 4, 1)).tolist()
    assert (
        call(address, "POST", PREDICT, {"signature_name": "", "instances": zeros})[:2]
        == (call(address, "POST", PREDICT, {"instances": zeros})[:2])
    )


def test_compressed_bodies_that_are_refused(address):
    for bomb in (gzip.compress(b" " * (20 * MAX_BODY)), 3 * gzip.compress(b" " * (MAX_BODY // 2))):
        assert len(bomb) < MAX_BODY
        answer = post(address, bomb, Content_Encoding="gzip")
        assert_refused(answer, 413, f"larger than {MAX_BODY} bytes when it is unpack")
    whole = gzip.compress(b"{}")
    for damaged in (b"{}", whole[:-1], whole + b"{", whole[:8] + b"?" + whole[9:-8] + bytes(8)):
        assert_refused(post(address, damaged, Content_Encoding="gzip"), 400, "not gzip")
    assert_refused(post(address, b"{}", Content_Encoding="br"), 415, "'br'")


def test_answers_are_not_held_back(address):
    """Nagle's algorithm and delayed acknowledgement together would make each answer wait 40 ms."""
    connection = http.client.HTTPConnection(address, timeout=30)
    seconds = []
    for _ in range(31):
        started = time.perf_counter()
        connection.request("POST", PREDICT, b"{")
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - started)
    connection.close()
    assert np.median(seconds) < 0.03


def test_a_body_that_breaks_off(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{{".encode())
    assert call(address, "GET", "/v1/models/r2c_gan")[0] == 200


@pytest.mark.parametrize("limit", ["body_seconds", "still_seconds"])
def test_a_body_that_does_not_come(served, limit):
    application = server.application(served, **{limit: 0.2})
    with server.Server(application, port=0).in_background() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{{".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


class Slow:
    """In the place of a model: waits until it is let go."""

    def __init__(self):
        self.release = threading.Event()

    def metadata(self, name):
        return {}

    def predict(self, body):
        assert self.release.wait(30)
        return b'{"predictions": []}'


def is_closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def impatient():
    """(server, its address, a function that opens a connection), of three connections and half a second."""
    model = Slow()
    model.release.set()
    made = server.Server(server.application(model), port=0, max_connections=3, head_seconds=0.5, idle_seconds=1)
    opened = []
    with made.in_background() as url:
        host, port = url.removeprefix("http://").split(":")

        def connect(data=b""):
            opened.append(socket.create_connection((host, int(port)), timeout=10))
            opened[-1].sendall(data)
            return opened[-1]

        yield made, f"{host}:{port}", connect
        for connection in opened:
            connection.close()


def test_connections_that_say_nothing_make_room_for_others(impatient):
    _, address, connect = impatient
    silent = [connect() for _ in range(10)]
    assert call(address, "POST", PREDICT, {})[0] == 200
    assert all(is_closed(connection) for connection in silent[:7])
    started = time.monotonic()
    assert all(is_closed(connection) for connection in silent[7:]) and time.monotonic() - started < 5


BEGUN = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{{".encode()


def test_bodies_that_do_not_come_keep_nobody_out(impatient):
    """Neither of the queue, which they have not reached, nor of the connections, of which they are the stillest."""
    model = Slow()
    model.release.set()
    with server.Server(server.application(model, workers=1, queue=1), port=0).in_background() as url:
        host, port = url.removeprefix("http://").split(":")
        with contextlib.ExitStack() as opened:
            for _ in range(10):
                opened.enter_context(socket.create_connection((host, int(port)), timeout=10)).sendall(BEGUN)
            time.sleep(0.1)
            assert call(f"{host}:{port}", "POST", PREDICT, {})[0] == 200
    _, address, connect = impatient
    begun = [connect(BEGUN) for _ in range(10)]
    time.sleep(0.1)
    assert call(address, "POST", PREDICT, {})[0] == 200
    assert all(is_closed(connection) for connection in begun[:7])


def test_bodies_that_arrive_share_a_limit_of_memory():
    model = Slow()
    model.release.set()
    application = server.application(model, workers=1, queue=1, max_body=1000)
    with server.Server(application, port=0).in_background() as url:
        address = url.removeprefix("http://")
        host, port = address.split(":")
        head = BEGUN.replace(b"100000", b"1000")
        with contextlib.ExitStack() as opened:
            for _ in range(2):
                opened.enter_context(socket.create_connection((host, int(port)), timeout=10)).sendall(head + b" " * 900)
            time.sleep(0.2)
            assert_refused(call(address, "POST", PREDICT, b" " * 300), 503, "too many large requests")
            assert call(address, "POST", PREDICT, {})[0] == 200
        time.sleep(0.2)
        assert call(address, "POST", PREDICT, b" " * 300)[0] == 200


def test_a_head_that_does_not_come(impatient):
    _, address, connect = impatient
    trickles = connect(b"GET / HT")
    for _ in range(20):
        time.sleep(0.1)
        try:
            trickles.sendall(b"T")
        except OSError:
            break
    else:
        pytest.fail("the connection was never closed")
    with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as kept:
        for pause in (0, 0.7):  # between two requests it may be still for longer than within one
            time.sleep(pause)
            kept.request("GET", "/v1/models/r2c_gan")
            assert kept.getresponse().read().startswith(b'{"model_version_status"')
        socket_, started = kept.sock, time.monotonic()
        assert is_closed(socket_) and time.monotonic() - started < 5


def test_an_answer_that_is_not_taken(impatient):
    made, _, connect = impatient

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100000000")]})
        await send({"type": "http.response.body", "body": bytes(100_000_000)})

    made._server.config.loaded_app = large
    connect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    deadline = time.monotonic() + 10
    seen = set()
    while time.monotonic() < deadline and seen != {1, 0}:
        seen.add(len(made._server.server_state.connections))
        if seen == {0}:
            seen.clear()
        time.sleep(0.05)
    assert seen == {1, 0} and not made._server.server_state.tasks


def test_more_than_can_wait_are_turned_away():
    """One is computed and two wait; of ten at once, seven are told to come back."""
    model, answers = Slow(), queue.Queue()
    with server.Server(server.application(model, workers=1, queue=2), port=0).in_background() as url:
        address = url.removeprefix("http://")
        threads = [threading.Thread(target=lambda: answers.put(call(address, "POST", PREDICT, {}))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for _ in range(7):
            answer = answers.get(timeout=20)
            assert_refused(answer, 503, "too many requests")
            assert answer[2]["Retry-After"] == "1"
        assert call(address, "GET", "/v1/models/r2c_gan")[0] == 200  # it still says that it is there
        assert answers.empty()
        model.release.set()
        for thread in threads:
            thread.join()
        assert [answers.get_nowait()[0] for _ in range(3)] == [200, 200, 200]
        assert call(address, "POST", PREDICT, {})[0] == 200


def test_a_defect_is_an_internal_error():
    class Broken(Slow):
        def predict(self, body):
            raise RuntimeError("secret")

    with server.Server(server.application(Broken()), port=0).in_background() as url:
        status, body, _ = call(url.removeprefix("http://"), "POST", PREDICT, {})
    assert (status, body) == (500, {"error": "internal error"})


def test_a_port_that_is_taken(address):
    with pytest.raises(UserError, match=r"--port=\d+: cannot listen there"):
        server.Server(None, port=int(address.split(":")[1]))


# --- the program -----------------------------------------------------------------------------------------------------


def start(*arguments, module="r2c_gan.cli.serve"):
    repository = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        programs.python("-m", module, *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def program_with_slow_model(*lines):
    """A server whose requests take a minute; (the process, its address)."""
    code = """
import resource, time
from r2c_gan.serving import server
class Slow:
    def metadata(self, name): return {}
    def predict(self, body): time.sleep(60)
"""
    code += "\n".join([*lines, "made = server.Server(server.application(Slow()), port=0, stop_seconds=1)"])
    process = subprocess.Popen(
        programs.python("-c", code + "\nprint(made.url, flush=True)\nmade.run()"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip().removeprefix("http://")


@pytest.mark.parametrize("times", [1, 2])
def test_it_ends_though_something_is_being_computed(times):
    process, address = program_with_slow_model()
    try:
        answers = queue.Queue()

        def ask():
            try:
                answers.put(call(address, "POST", PREDICT, {}))
            except OSError:  # the second signal answers nobody
                answers.put(None)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.5)
        started = time.monotonic()
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in errors and time.monotonic() - started < (5 if times == 1 else 0.9)
        if times == 1:
            assert_refused(answers.get(timeout=5), 503, "is being stopped")
    finally:
        process.kill()
        process.communicate()
        thread.join()


def test_few_open_files_are_enough():
    """300 silent connections where the process may open 256 files: others are answered, and nothing is written."""
    process, address = program_with_slow_model("resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))")
    host, port = address.split(":")
    connections = []
    try:
        for _ in range(300):
            connections.append(socket.create_connection((host, int(port)), timeout=10))
        assert call(address, "GET", "/v1/models/r2c_gan")[0] == 200
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        for connection in connections:
            connection.close()
    assert errors == ""


def test_the_program(exported, png):
    process = start(f"--model={exported}", "--port=0", "--name=chest")
    try:
        line = process.stdout.readline()
        assert "Research only, not for diagnosis" in line, process.stderr.read()
        url = next(word for word in line.split() if word.startswith("http://"))
        assert url.startswith("http://127.0.0.1:") and url.rstrip(".").endswith("/v1/models/chest")
        address = url.split("/")[2]
        assert call(address, "POST", "/v1/models/chest:predict", request_of([b64(png)]))[0] == 200
        assert call(address, "POST", "/v1/models/chest:predict", request_of([b64(png[:90])]))[0] == 400
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def test_what_the_program_refuses(tmp_path):
    for arguments, message in (
        ((f"--model={tmp_path}",), "holds no saved_model.pb"),
        ((f"--model={tmp_path}", "--workers=0"), "--workers=0: must be at least 1"),
    ):
        process = start(*arguments)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and "Traceback" not in errors
        assert errors.strip().splitlines()[-1].startswith("error: ") and message in errors


# --- the load test ---------------------------------------------------------------------------------------------------


def load_test(address, folder, **arguments):
    flags = {"url": f"http://{address}", "output_dir": folder, "seconds": 1, "clients": 2, "size": 24, **arguments}
    process = start(*(f"--{name}={value}" for name, value in flags.items()), module="experiments.benchmarks.load_test")
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return process.returncode, errors, folder / "result.json"


def test_load_and_malformed_requests_of_every_kind(address, tmp_path):
    code, errors, result = load_test(address, tmp_path / "new", malformed=120)
    assert code == 0, errors
    result = json.loads(result.read_text())
    assert result["load"]["errors"] == 0 and result["load"]["answered"] >= 2
    assert 0 < result["load"]["milliseconds"]["p50"] <= result["load"]["milliseconds"]["p99"]
    malformed = result["malformed"]
    assert malformed["sent"] == 120 and malformed["kinds"] > 50 and malformed["wrongly_answered"] == []
    statuses = {status for counts in malformed["statuses"].values() for status in counts}
    assert statuses <= {"400", "404", "405", "408", "413", "None"}


def test_a_server_that_takes_anything_fails_the_load_test(png, tmp_path):
    class Credulous(Slow):
        def predict(self, body):
            row = {"restored_png_bytes": b64(png), "probabilities": [0.5, 0.5], "label": "covid"}
            return json.dumps({"predictions": [row]}).encode()

    with server.Server(server.application(Credulous()), port=0).in_background() as url:
        code, errors, result = load_test(url.removeprefix("http://"), tmp_path / "new", malformed=60, seconds=0)
    assert code == 1 and "were not answered as they should be" in errors
    assert len(json.loads(result.read_text())["malformed"]["wrongly_answered"]) > 30


def test_the_load_test_is_for_this_machine(tmp_path):
    code, errors, _ = load_test("192.0.2.1:8501", tmp_path / "new", malformed=1)
    assert code == 1 and "only a server on this machine is tested" in errors
    assert not (tmp_path / "new").exists()

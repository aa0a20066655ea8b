"""Loads a server of an exported model with parallel clients, and then with requests that are wrong in many ways.

  r2c-gan-serve --model exported/ --port 8501
  python -m experiments.benchmarks.load_test --seconds 120 --clients 8 --malformed 1000 --output_dir results/load_test

It speaks TensorFlow Serving's predict interface (signature serve_rest), so tensorflow_model_server can be in the place
of r2c-gan-serve. Every answer of the load is checked: status, a PNG, probabilities that sum to 1, a label. Of the
malformed requests each must be answered with a 4xx status or, where it is no HTTP, by closing the connection; after
each hundred, and at the end, a good request must be answered as before. Exit code 1 if not.

Only servers on this machine are tested.
"""

import base64
import http.client
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.benchmarks.machine import machine
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT = 60


def main():
    address = urllib.parse.urlsplit(FLAGS.url)
    if address.hostname not in LOOPBACK:
        raise UserError(f"--url={FLAGS.url}: only a server on this machine is tested ({', '.join(LOOPBACK)})")
    client = Client(address.hostname, address.port or 8501, FLAGS.name)
    client.check_available()
    images = list(_images(FLAGS.images, FLAGS.size, FLAGS.seed))
    program.write_flags(FLAGS.output_dir)
    before = _memory(FLAGS.pid)
    expected = client.predict(images[0])
    result = {"images": len(images), "memory_mib": {"before": before}}
    if FLAGS.seconds:
        result["load"] = _load(client, images)
        result["memory_mib"]["after_load"] = _memory(FLAGS.pid)
    if FLAGS.malformed:
        result["malformed"] = _malformed(client, images[0], expected)
        result["memory_mib"]["after_malformed"] = _memory(FLAGS.pid)
    program.start_tensorflow()
    result["machine"] = machine()
    files.write_json(Path(FLAGS.output_dir) / "result.json", result)
    print(json.dumps(result, indent=2))
    failures = result.get("load", {}).get("errors", 0) + len(result.get("malformed", {}).get("wrongly_answered", []))
    if failures:
        raise UserError(f"{FLAGS.url}: {failures} requests were not answered as they should be; see result.json")


class Client:
    """A client of TensorFlow Serving's predict interface for one model; one connection a thread."""

    def __init__(self, host, port, name):
        self.host, self.port = host, port
        self.path = f"/v1/models/{name}"
        self._threads = threading.local()

    def check_available(self):
        try:
            status, body = self.request("GET", self.path)
        except OSError as error:
            raise UserError(f"--url: no server answers at {self.host}:{self.port} ({error})") from error
        if status != 200:
            raise UserError(f"--name: {body.decode(errors='replace')}")

    def request(self, method, path, body=None):
        """Sends a request on this thread's connection, or on a new one if the server has closed it for being idle."""
        connection = getattr(self._threads, "connection", None)
        used = connection is not None
        if not used:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
            self._threads.connection = connection
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except Exception as error:
            connection.close()
            self._threads.connection = None
            if used and isinstance(error, ConnectionError | http.client.BadStatusLine):
                return self.request(method, path, body)
            raise

    def predict(self, image):
        """Has one image restored: (PNG bytes, probabilities, label).

        Raises:
            ValueError: if the answer is not what it should be.
        """
        body = {"signature_name": "serve_rest", "instances": [{"encoded": in_base64(image)}]}
        status, answer = self.request("POST", self.path + ":predict", json.dumps(body))
        if status != 200:
            raise ValueError(f"status {status}: {answer[:200].decode(errors='replace')}")
        (prediction,) = json.loads(answer)["predictions"]
        restored = base64.b64decode(prediction["restored_png_bytes"]["b64"])
        probabilities = prediction["probabilities"]
        if cv2.imdecode(np.frombuffer(restored, np.uint8), cv2.IMREAD_UNCHANGED) is None:
            raise ValueError("restored_png_bytes is no PNG")
        if abs(sum(probabilities) - 1) > 1e-4 or prediction["label"] not in ("control", "covid"):
            raise ValueError(f"probabilities {probabilities}, label {prediction['label']!r}")
        return restored, probabilities, prediction["label"]

    def raw(self, data):
        """Sends bytes as they are and returns the status of the answer, None if the connection is just closed."""
        with socket.create_connection((self.host, self.port), timeout=TIMEOUT) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(65536)
            except TimeoutError:
                raise
            except OSError:  # closed before all was sent, or before it could be half-closed
                return None
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
        return int(found.group(1)) if found else None


def in_base64(data):
    """Bytes as the interface takes them."""
    return {"b64": base64.b64encode(data).decode()}


def _images(folder, size, seed):
    """PNG files: those of a folder, else blurred noise of a size."""
    if folder:
        found = sorted(Path(folder).rglob("*.png"))[:100]
        if not found:
            raise UserError(f"--images={folder}: holds no .png")
        for path in found:
            yield path.read_bytes()
        return
    rng = np.random.default_rng(seed)
    for _ in range(8):
        noise = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), size / 16)
        noise = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX) + rng.normal(0, 8, (size, size))
        yield cv2.imencode(".png", np.clip(noise, 0, 255).astype(np.uint8))[1].tobytes()


def _load(client, images):
    """Parallel clients for a while: figures of the answers."""
    seconds, errors = [[] for _ in range(FLAGS.clients)], Counter()
    started = time.monotonic()
    until = started + FLAGS.seconds

    def work(number):
        turn = number
        while time.monotonic() < until:
            begin = time.perf_counter()
            try:
                client.predict(images[turn % len(images)])
                seconds[number].append(time.perf_counter() - begin)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                errors[f"{type(error).__name__}: {error}"] += 1
            turn += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(FLAGS.clients)]
    for thread in threads:
        thread.start()
    with tqdm(total=FLAGS.seconds, desc="load", unit="s") as bar:
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            bar.update(min(FLAGS.seconds, round(time.monotonic() - started)) - bar.n)
    elapsed = time.monotonic() - started
    taken = np.array([value for values in seconds for value in values])
    if not len(taken):
        raise UserError(f"{FLAGS.url}: no request was answered: {dict(errors)}")
    return {
        "clients": FLAGS.clients,
        "seconds": round(elapsed, 1),
        "answered": len(taken),
        "errors": sum(errors.values()),
        "kinds_of_errors": dict(errors),
        "images_per_second": round(len(taken) / elapsed, 2),
        "milliseconds": {
            name: round(1000 * float(np.percentile(taken, at)), 1)
            for name, at in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
    }


# --- malformed requests ----------------------------------------------------------------------------------------------


def _malformed(client, image, expected):
    """Sends wrong requests of all kinds in turn, and checks the server in between."""
    rng = np.random.default_rng(FLAGS.seed)
    kinds = {**_bad_images(image, rng), **_bad_requests(image, rng)}
    raw = _bad_http(client, rng)
    statuses, wrong = {}, []
    for number in tqdm(range(FLAGS.malformed), "malformed"):
        kind = (list(kinds) + list(raw))[number % (len(kinds) + len(raw))]
        try:
            if kind in raw:
                status = client.raw(raw[kind]())
            else:
                status, _ = client.request("POST", client.path + ":predict", kinds[kind]())
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        statuses.setdefault(kind, Counter())[str(status)] += 1
        closed = kind in raw and status is None
        if not closed and not (isinstance(status, int) and 400 <= status < 500):
            wrong.append(f"{kind}: {status}")
        if number % 100 == 99 and client.predict(image) != expected:
            wrong.append(f"after {number + 1}: a good request was answered otherwise")
    if client.predict(image) != expected:
        wrong.append("at the end: a good request was answered otherwise")
    return {
        "sent": FLAGS.malformed,
        "kinds": len(statuses),
        "statuses": {kind: dict(counts) for kind, counts in statuses.items()},
        "wrongly_answered": wrong,
        "good_request_answered_at_the_end": "at the end" not in "".join(wrong),
    }


def _bad_images(image, rng):
    """Request bodies whose image cannot be decoded, each made anew by a function."""
    gray = rng.integers(0, 256, (64, 64), np.uint8)
    jpeg = cv2.imencode(".jpg", gray)[1].tobytes()
    data_at = image.index(b"IDAT") + 4
    bomb = png_of(12_000, 12_000, rows=b"\0" * (12_001 * 12_000))
    wide_bomb = png_of(20_001, 1000, rows=b"\0" * (20_002 * 1000))

    def cut(data, least=0):
        return data[: rng.integers(least, len(data) - 12)]

    def flipped():
        place = int(rng.integers(data_at, len(image) - 16))
        return image[:place] + bytes([image[place] ^ (1 << int(rng.integers(8)))]) + image[place + 1 :]

    def resized_jpeg():
        place = jpeg.index(b"\xff\xc0") + 5
        return jpeg[:place] + struct.pack(">HH", 65500, 65500) + jpeg[place + 4 :]

    made = {
        "a truncated PNG": lambda: cut(image),
        "a truncated JPEG": lambda: cut(jpeg),
        "random bytes": lambda: rng.bytes(int(rng.integers(0, 5000))),
        "a PNG's signature and random bytes": lambda: image[:8] + rng.bytes(int(rng.integers(0, 5000))),
        "a JPEG's signature and random bytes": lambda: jpeg[:4] + rng.bytes(int(rng.integers(0, 5000))),
        "a PNG with a flipped bit": flipped,
        "a PNG header of huge dimensions": lambda: png_of(*rng.integers(20_001, 2**31, 2).tolist()),
        "a PNG header of no pixels": lambda: png_of(0, 0),
        "a PNG header of bad depth": lambda: png_of(64, 64, depth=int(rng.choice([0, 3, 5, 32, 255]))),
        "a bomb: 12,000 x 12,000 real pixels": lambda: bomb,
        "a bomb: 20,001 x 1,000 real pixels": lambda: wide_bomb,
        "a JPEG of huge dimensions": resized_jpeg,
        "a GIF": lambda: b"GIF89a" + struct.pack("<HH", 60000, 60000) + rng.bytes(50),
        "a BMP": lambda: cv2.imencode(".bmp", gray)[1].tobytes(),
        "a TIFF": lambda: cv2.imencode(".tiff", gray)[1].tobytes(),
        "nothing": lambda: b"",
    }

    def request(make):
        return lambda: json.dumps({"signature_name": "serve_rest", "instances": [in_base64(make())]})

    return {kind: request(make) for kind, make in made.items()}


def _bad_requests(image, rng):
    """Request bodies of the wrong form."""
    good = in_base64(image)

    def encoded(value, **others):
        return json.dumps({"signature_name": "serve_rest", "instances": value, **others})

    def image_request(value):
        return json.dumps({"instances": value})

    valid = encoded([good])
    bodies = {
        "a good and a bad image": lambda: encoded([good, in_base64(image[:100])]),
        "a number for bytes": lambda: encoded([int(rng.integers(1e6))]),
        "a list for bytes": lambda: encoded([[1, 2, 3]]),
        "null for bytes": lambda: encoded([None]),
        "text for bytes": lambda: encoded(["radiograph.png"]),
        "base64 that is none": lambda: encoded([{"b64": "!" + "x" * int(rng.integers(50))}]),
        "a number for base64": lambda: encoded([{"b64": 5}]),
        "another key": lambda: encoded([{"image": good}]),
        "two keys": lambda: encoded([{"encoded": good, "size": 5}]),
        "no instances": lambda: encoded([]),
        "instances is an object": lambda: encoded({"a": 1}),
        "both formats": lambda: encoded([good], inputs=[good]),
        "neither format": lambda: json.dumps({"signature_name": "serve_rest"}),
        "an unknown signature": lambda: encoded([good], signature_name="serve_" + str(rng.integers(100))),
        "the signature is a list": lambda: encoded([good], signature_name=[1]),
        "too many images": lambda: encoded([in_base64(png_of(1, 1))] * 20_000),
        "truncated JSON": lambda: valid[: int(rng.integers(1, len(valid) - 1))],
        "random bytes for JSON": lambda: rng.bytes(int(rng.integers(1, 3000))),
        "no body": lambda: b"",
        "JSON that is a list": lambda: json.dumps([1, 2]),
        "JSON nested 100,000 deep": lambda: b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a number of 100,000 digits": lambda: b'{"instances":[' + b"9" * 100_000 + b"]}",
        "not UTF-8": lambda: b'{"instances":["\xff\xfe\x80"]}',
        "text for pixels": lambda: image_request([[["a", "b"], ["c", "d"]]]),
        "ragged pixels": lambda: image_request([[[[0.1]], [[0.1], [0.2]]]]),
        "pixels of the wrong rank": lambda: image_request([0.5, 0.25]),
        "17 channels": lambda: image_request(np.zeros((1, 4, 4, 17)).tolist()),
        "odd height": lambda: image_request(np.zeros((1, 3, 4, 1)).tolist()),
        "infinite pixels": lambda: b'{"instances":[[[[1e999],[1]],[[1],[1]]]]}',
        "NaN": lambda: b'{"instances":[[[[NaN],[1]],[[1],[1]]]]}',
        "1e38": lambda: image_request(np.full((1, 8, 8, 1), 1e39).tolist()),
        "a body of 40 MiB": lambda: b'{"instances":["' + b"A" * (40 * 2**20) + b'"]}',
    }
    if FLAGS.malformed < 500:
        del bodies["a body of 40 MiB"]
    return bodies


def _bad_http(client, rng):
    """Bytes that are no good HTTP, each made anew by a function."""
    start = f"POST {client.path}:predict HTTP/1.1\r\nHost: test\r\n".encode()
    return {
        "random bytes for HTTP": lambda: rng.bytes(int(rng.integers(1, 2000))),
        "a body that breaks off": lambda: start + b"Content-Length: 5000\r\n\r\n" + b'{"instances": [',
        "a length that is no number": lambda: start + b"Content-Length: many\r\n\r\n{}",
        "a negative length": lambda: start + b"Content-Length: -5\r\n\r\n{}",
        "headers of 200 kB": lambda: start + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        "chunks that are none": lambda: start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        "another path": lambda: b"POST /v1/models/%2e%2e/%2e%2e/etc:predict HTTP/1.1\r\nHost: t\r\n\r\n",
        "another method": lambda: start.replace(b"POST", b"DELETE") + b"\r\n",
    }


def png_of(width, height, depth=8, rows=b""):
    """A PNG file of a header and compressed rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = zlib.compress(rows, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _memory(pid):
    """Resident memory of a process in MiB, and its peak; None if no process is named or this is no Linux."""
    status = Path(f"/proc/{pid}/status")
    if not pid or not Path("/proc/self/status").exists():
        return None
    if not status.exists():
        raise UserError(f"--pid={pid}: there is no such process")
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read_text()))
    if not found:
        raise UserError(f"--pid={pid}: that process has ended")
    return {"resident": round(int(found["VmRSS"]) / 1024, 1), "peak": round(int(found["VmHWM"]) / 1024, 1)}


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("url", "http://127.0.0.1:8501", "Address of the server.")
    flags.DEFINE_string("name", "r2c_gan", "Name of the model.")
    flags.DEFINE_integer("clients", 8, "Parallel clients.")
    flags.DEFINE_integer("seconds", 120, "Length of the load; 0 for none.")
    flags.DEFINE_integer("malformed", 1000, "Malformed requests after it; 0 for none.")
    flags.DEFINE_string("images", None, "Folder of PNG files to send (the first 100); noise by default.")
    flags.DEFINE_integer("size", 256, "Side of the noise images, in pixels.")
    flags.DEFINE_integer("pid", 0, "Process of the server, whose memory is to be recorded.")
    flags.DEFINE_integer("seed", 0, "Seed of the images and of the malformed requests.")
    flags.DEFINE_string("output_dir", "results/load_test", "Folder for result.json.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()

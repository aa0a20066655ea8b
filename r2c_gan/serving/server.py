"""A small server of one exported model, with the REST interface of TensorFlow Serving's predict.

    POST /v1/models/NAME[/versions/1]:predict     {"signature_name": ..., "instances": [...]} or {..., "inputs": {...}}
    GET  /v1/models/NAME[/versions/1]             whether it can be used
    GET  /v1/models/NAME[/versions/1]/metadata    its signatures

An error is `{"error": "..."}` with 400 (the request is wrong), 404 (no such model), 408 (its body did not come in
time), 413 (too large), 415 (compressed otherwise than by gzip), 503 (too many requests at once). A request is computed
by itself, so a bad one fails alone.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import math
import os
import resource
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from r2c_gan.data import images, plausibility
from r2c_gan.errors import UserError
from r2c_gan.restoration import saved_models

VERSION = "1"  # TensorFlow Serving numbers the models under a name; here there is one
# TensorFlow Serving writes bytes as base64 under these names. Of a PNG under another name it writes no valid JSON, so
# here that is base64 too.
BYTES_SUFFIXES = ("_bytes", "_png")
# What is left of a body that is too large is read and thrown away, so that the client gets to see the answer.
DISCARD_FACTOR = 4
HEAD_SECONDS = 10  # that the head of a request may take to arrive, from the start of the connection or its first byte
IDLE_SECONDS = 30  # after which a connection is closed that waits for its next request, or takes nothing of an answer
STOP_SECONDS = 10  # that requests have to end when the server is stopped
BACKLOG = 64  # connections that the system accepts on our behalf; as many can be opened or closed at one time
RESERVED_FILES = 2 * BACKLOG + 64  # open files that are no connections
MAX_DECODED = 160_000_000


class RequestError(Exception):
    """A request that cannot be answered as asked.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class ServedModel:
    """A SavedModel of `r2c-gan-export`, and how JSON maps onto its signatures.

    Args:
        folder: the SavedModel.
        max_pixels: pixels that one request may put through the network, all its images together.
        max_decoded: pixels that the files of one request may have, by their headers, all together: a PNG of a few
            kilobytes can have 40 million.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, folder, max_pixels, max_decoded=MAX_DECODED):
        self._loaded, self.record = saved_models.load(folder)
        self.folder = Path(folder)
        self.max_pixels, self.max_decoded = max_pixels, max_decoded
        self.films = plausibility.Plausibility.load(folder)
        self.signatures = {name: function for name, function in self._loaded.signatures.items()}

    def predict(self, body):
        """Answers a request.

        Args:
            body: JSON bytes, in TensorFlow Serving's row format ("instances") or column format ("inputs").

        Returns:
            JSON bytes: "predictions", a list of dictionaries, or "outputs", a dictionary of lists.

        Raises:
            RequestError: if it cannot be answered.
        """
        import orjson
        import tensorflow as tf

        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestError(400, f"JSON parse error: {error}") from error
        if not isinstance(request, dict):
            raise RequestError(400, "the request must be a JSON object")
        unknown = set(request) - {"signature_name", "instances", "inputs"}
        if unknown:
            raise RequestError(400, f"unknown key {min(unknown)!r}; known are signature_name, instances, inputs")
        if ("instances" in request) == ("inputs" in request):
            raise RequestError(400, "give either 'instances' (row format) or 'inputs' (column format)")
        name = request.get("signature_name", "serving_default")
        name = "serving_default" if name == "" else name
        if not isinstance(name, str) or name not in self.signatures:
            raise RequestError(400, f"no signature {name!r}; there are {', '.join(sorted(self.signatures))}")
        signature = self.signatures[name]
        ((input_name, spec),) = signature.structured_input_signature[1].items()
        by_row = "instances" in request
        values = _rows(request["instances"], input_name) if by_row else _columns(request["inputs"], input_name)
        array = _strings(values) if spec.dtype == tf.string else _numbers(values)
        self._check(array, spec, input_name)
        try:
            outputs = {key: value.numpy() for key, value in signature(**{input_name: tf.constant(array)}).items()}
        except tf.errors.ResourceExhaustedError as error:
            raise RequestError(503, "not enough memory for this request") from error
        except tf.errors.OpError as error:
            raise RequestError(400, _reason(error)) from error
        except UnicodeDecodeError as error:  # TensorFlow quotes the bytes that it cannot read
            raise RequestError(400, "cannot be decoded") from error
        if self.films is not None:
            outputs |= self._judged(array)
        return _answer(outputs, by_row)

    def _judged(self, array):
        """What speaks against the images being chest radiographs, as further outputs: `unlikeness` and `warning`."""
        judged = [plausibility.judge(self.films, image if array.ndim == 4 else _gray(image)) for image in array]
        warnings = [(warning or "").encode() for _, warning in judged]
        scores = np.array([score for score, _ in judged], np.float32)
        return {"unlikeness": scores, "warning": np.array(warnings, dtype=object)}

    def _check(self, array, spec, name):
        if not spec.shape.is_compatible_with(array.shape):
            raise RequestError(400, f"{name}: of shape {list(array.shape)}; {_dimensions(spec)} is needed")
        if 0 in array.shape:
            raise RequestError(400, f"{name}: nothing in it (shape {list(array.shape)})")
        if array.ndim == 4 and np.abs(array).max() > 1 + images.TOLERANCE:
            raise RequestError(400, f"{name}: values from {array.min():g} to {array.max():g}; images are in [-1, 1]")
        size = array.shape[1:3] if array.ndim == 4 else self.record["image_size"]
        pixels = len(array) * math.prod(size)
        if pixels > self.max_pixels:
            raise RequestError(
                413,
                f"{name}: {len(array)} images of {size[0]} x {size[1]} are {pixels} pixels; "
                f"at most {self.max_pixels} a request go through the network",
            )
        decoded = sum(map(_pixels_of_file, array)) if array.dtype == object else 0
        if decoded > self.max_decoded:
            raise RequestError(
                413,
                f"{name}: {decoded} pixels in all files; at most {self.max_decoded} a request are decoded",
            )

    def metadata(self, name):
        """The signatures, as TensorFlow Serving gives them."""
        from google.protobuf import json_format
        from tensorflow.core.protobuf import saved_model_pb2

        model = saved_model_pb2.SavedModel.FromString((self.folder / "saved_model.pb").read_bytes())
        signatures = {
            key: json_format.MessageToDict(value, preserving_proto_field_name=True)
            for key, value in model.meta_graphs[0].signature_def.items()
        }
        return {
            "model_spec": {"name": name, "signature_name": "", "version": VERSION},
            "metadata": {"signature_def": {"signature_def": signatures}},
        }


def _rows(instances, name):
    if not isinstance(instances, list):
        raise RequestError(400, "'instances' must be a list")
    return [_named(instance, name) for instance in instances]


def _columns(inputs, name):
    values = _named(inputs, name)
    if not isinstance(values, list):
        raise RequestError(400, f"{name}: must be a list, with one element for each image")
    return values


def _named(value, name):
    """A model of one input takes {name: value} and the bare value alike."""
    if not isinstance(value, dict) or set(value) == {"b64"}:
        return value
    if set(value) != {name}:
        raise RequestError(400, f"the only input is {name!r}, not {', '.join(map(repr, sorted(value))) or 'nothing'}")
    return value[name]


def _strings(values):
    return np.array([_bytes(value) for value in values], dtype=object)


def _bytes(value):
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, dict) or set(value) != {"b64"} or not isinstance(value["b64"], str):
        raise RequestError(400, 'bytes are given as {"b64": "<base64>"}')
    text = "".join(value["b64"].split())  # TensorFlow Serving takes line breaks, and a missing end
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"not base64 ({error})") from error


def _pixels_of_file(encoded):
    """The pixels of a PNG or JPEG by its header; 0 if it has none that can be read, and so is not decoded."""
    import tensorflow as tf

    if encoded.startswith(b"\x89PNG"):
        return int.from_bytes(encoded[16:20]) * int.from_bytes(encoded[20:24])
    try:
        return math.prod(tf.io.extract_jpeg_shape(encoded).numpy().tolist()[:2])
    except tf.errors.InvalidArgumentError:
        return 0


def _inflate(body, encoding, max_body):
    """The body of a request as it was before it was compressed."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise RequestError(415, f"Content-Encoding {encoding!r}; a body is taken as it is, or compressed by gzip")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        plain = inflate.decompress(body, max_body + 1)
    except zlib.error as error:
        raise RequestError(400, f"not gzip ({error})") from error
    if len(plain) > max_body:
        raise RequestError(413, f"the request is larger than {max_body} bytes when it is unpacked")
    if not inflate.eof or inflate.unused_data:
        raise RequestError(400, "not gzip (it is cut off, or something follows it)")
    return plain


def _gray(encoded):
    """What the graph has decoded, float [H, W, 1] in [-1, 1]; a blank image of what OpenCV does not decode."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    return np.zeros((1, 1, 1), np.float32) if pixels is None else images.from_uint(pixels)[..., None]


def _numbers(values):
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise RequestError(400, "not an array of numbers: its rows differ in length or kind") from error
    if array.dtype.kind not in "iuf":
        raise RequestError(400, "not an array of numbers")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise RequestError(400, "a number is not finite")
    return array


def _dimensions(spec):
    return "[" + ", ".join("any" if size is None else str(size) for size in spec.shape) + "]"


def _reason(error):
    """What is wrong, out of TensorFlow's account of where in the graph it was found."""
    message = str(error)
    if "assertion failed: [" in message:
        return message.split("assertion failed: [", 1)[1].split("\n")[0].rsplit("]", 1)[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("(") or "Invalid" in line or "JPEG" in line or "PNG" in line]
    return (said or lines or ["cannot be computed"])[0][:300]


def _answer(outputs, by_row):
    import orjson

    columns = {}
    for name, array in outputs.items():
        if array.dtype == object:
            as_bytes = name.endswith(BYTES_SUFFIXES)
            columns[name] = [
                {"b64": base64.b64encode(value).decode()} if as_bytes else value.decode() for value in array.tolist()
            ]
        elif np.isfinite(array).all():
            columns[name] = np.ascontiguousarray(array)
        else:
            raise RequestError(400, f"{name}: not finite; are the values of the images in [-1, 1]?")
    if by_row:
        count = len(next(iter(columns.values())))
        answer = {"predictions": [{name: values[row] for name, values in columns.items()} for row in range(count)]}
    else:
        answer = {"outputs": columns}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def application(model, name="r2c_gan", workers=2, queue=32, max_body=32 * 2**20, body_seconds=60):
    """The web application.

    Args:
        model: a `ServedModel`.
        name: name of the model in the addresses.
        workers: requests computed at once.
        queue: requests that may wait besides; more are answered with 503.
        max_body: bytes of a request.
        body_seconds: seconds that a request's body may take to arrive.

    Returns:
        A `starlette.applications.Starlette`.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    executor = ThreadPoolExecutor(workers, thread_name_prefix="predict")
    accepted = 0
    metadata = model.metadata(name)

    def check_name(request):
        if request.path_params["name"] != name:
            raise RequestError(404, f"no model {request.path_params['name']!r}; there is {name!r}")
        if request.path_params.get("version", VERSION) != VERSION:
            raise RequestError(404, f"no version {request.path_params['version']!r} of {name!r}; there is {VERSION}")

    async def predict(request):
        nonlocal accepted
        check_name(request)
        if accepted >= workers + queue:
            raise RequestError(503, "too many requests at once; try again later")
        accepted += 1
        try:
            try:
                async with asyncio.timeout(body_seconds):
                    body = await _read_body(request, max_body)
            except TimeoutError as error:
                raise RequestError(408, f"the request took longer than {body_seconds} s to arrive") from error
            encoding = request.headers.get("content-encoding", "").strip().lower()
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(executor, lambda: model.predict(_inflate(body, encoding, max_body)))
        except asyncio.CancelledError as error:
            raise RequestError(503, "the server is being stopped") from error
        finally:
            accepted -= 1
        return Response(answer, media_type="application/json")

    async def status(request):
        check_name(request)
        state = {"version": VERSION, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return JSONResponse({"model_version_status": [state]})

    async def describe(request):
        check_name(request)
        return JSONResponse(metadata)

    async def refused(request, error):
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)

    async def unknown(request, error):
        return JSONResponse({"error": f"{error.detail}: {request.method} {request.url.path}"}, error.status_code)

    async def defect(request, error):
        return JSONResponse({"error": "internal error"}, 500)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        executor.shutdown(wait=False, cancel_futures=True)

    routes = []
    for prefix in ("/v1/models/{name}/versions/{version}", "/v1/models/{name}"):
        routes += [
            Route(f"{prefix}:predict", predict, methods=["POST"]),
            Route(f"{prefix}/metadata", describe),
            Route(prefix, status),
        ]
    handlers = {RequestError: refused, HTTPException: unknown, Exception: defect}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _read_body(request, max_body):
    """The body of a request, which is thrown away as it comes if it is too large."""
    from starlette.requests import ClientDisconnect

    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= max_body:
                chunks.append(chunk)
            else:
                chunks.clear()
                if size > DISCARD_FACTOR * max_body:
                    break
    except ClientDisconnect as error:
        raise RequestError(400, "the request broke off") from error
    if size > max_body:
        raise RequestError(413, f"the request is larger than {max_body} bytes")
    return b"".join(chunks)


def _uvicorn(max_connections, head_seconds, idle_seconds, stop_seconds):
    """The classes of uvicorn's connection and server, with the limits that these lack: (connection, server)."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        """Is closed if a request's head does not come, or an answer is not taken. A full server closes the stillest."""

        _alarm = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._still_since = self.loop.time()
            self._set_alarm(head_seconds)
            open_ones = [other for other in self.connections if not other.transport.is_closing()]
            if len(open_ones) > max_connections:
                waiting = (other for other in open_ones if other.waits())
                min(waiting, key=lambda other: other._still_since).transport.abort()  # this one, if all are at work

        def connection_lost(self, exc):
            self._set_alarm(None)
            super().connection_lost(exc)

        def waits(self):
            """Whether the head of a request is waited for."""
            return self.cycle is None or self.cycle.response_complete

        def data_received(self, data):
            waited = self.waits()
            super().data_received(data)
            if waited and not self.waits():
                self._set_alarm(None)
            elif waited and self._alarm is None:
                self._set_alarm(head_seconds)

        def on_response_complete(self):
            self._still_since = self.loop.time()
            super().on_response_complete()

        def pause_writing(self):
            super().pause_writing()
            self._set_alarm(idle_seconds)

        def resume_writing(self):
            super().resume_writing()
            self._set_alarm(None)

        def _set_alarm(self, seconds):
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    class Stoppable(uvicorn.Server):
        """Ends in bounded time, whatever is being computed, and at once if it is asked a second time."""

        def handle_exit(self, number, frame):
            if self.should_exit:
                os._exit(128 + number)
            last_resort = threading.Timer(stop_seconds + 5, os._exit, (128 + number,))
            last_resort.daemon = True
            last_resort.start()
            super().handle_exit(number, frame)

    return Connection, Stoppable


def _is_no_cancellation(record):
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class Server:
    """Serves an application until it is stopped.

    Args:
        app: what `application` gives.
        host: address to listen at.
        port: port to listen at; 0 for any that is free.
        max_connections: connections held at once, fewer where the system allows the process fewer open files. One more
            closes the one that has been without a request for longest.
        head_seconds, idle_seconds, stop_seconds: as `HEAD_SECONDS`, `IDLE_SECONDS` and `STOP_SECONDS`.

    Attributes:
        url: where it listens.

    Raises:
        UserError: if it cannot listen there.
    """

    def __init__(
        self,
        app,
        host="127.0.0.1",
        port=8501,
        max_connections=256,
        head_seconds=HEAD_SECONDS,
        idle_seconds=IDLE_SECONDS,
        stop_seconds=STOP_SECONDS,
    ):
        import uvicorn

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sends small parts of an answer at once only where the protocol is named; else each waits 40 ms.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise UserError(f"--host={host} --port={port}: cannot listen there ({error})") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}"
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY:
            max_connections = max(1, min(max_connections, files - RESERVED_FILES))
        connection, server = _uvicorn(max_connections, head_seconds, idle_seconds, stop_seconds)
        config = uvicorn.Config(
            app,
            http=connection,
            ws="none",
            log_level="error",
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=idle_seconds,
            timeout_graceful_shutdown=stop_seconds,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)  # of requests, when the server is stopped
        self._server = server(config)

    def run(self):
        """Serves until Ctrl-C or SIGTERM; requests that are being computed have `stop_seconds` to end."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    @contextlib.contextmanager
    def in_background(self):
        """Serves in a thread while the block runs; yields the address."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield self.url
        finally:
            self._server.should_exit = True
            thread.join()

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
import gzip
import io
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

from r2c_gan.data import images, plausibility, raster
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
MAX_FILE_PIXELS = 40_000_000  # of one image, as in the exported graph (`graph_images.MAX_PIXELS`)


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
        if spec.dtype == tf.string:
            outputs = self._predict_files(signature, _strings(values), input_name)
        else:
            outputs = self._predict_pixels(signature, _numbers(values), input_name, spec)
        return _answer(outputs, by_row)

    def _predict_pixels(self, signature, array, name, spec):
        self._check(array, name, spec)
        outputs = _run(signature, array)
        judged = [plausibility.judge(self.films, image) for image in array] if self.films is not None else []
        outputs |= _judgements(judged)
        if 0 <= array.min() < array.max():  # as `Restorer` warns
            given = outputs.get("warning", [b""] * len(array))
            told = f"all values lie in [{array.min():.2g}, {array.max():.2g}]; images are in [-1, 1]".encode()
            outputs["warning"] = np.array([b"; ".join(filter(None, (told, other))) for other in given], dtype=object)
        return outputs

    def _predict_files(self, signature, encoded, name):
        """What a signature of files gives, of what the package's own reader makes of them.

        The graph's decoders pass over damage, and over the orientation of a JPEG.
        """
        self._check_files(encoded, name)
        (height, width), channels = self.record["image_size"], self.record["channels"]
        batch, judged = np.empty((len(encoded), height, width, channels), np.float32), []
        for number, data in enumerate(encoded):
            try:
                pixels = images.decode(f"{name}[{number}]", data, window="auto").pixels
            except images.ImageError as error:
                raise RequestError(400, str(error)) from error
            if self.films is not None:
                judged.append(plausibility.judge(self.films, pixels))
            batch[number] = images.with_channels(images.resize(pixels, height, width), channels)
        found = _run(self.signatures["serving_default"], batch)
        likelier = np.argmax(found["probabilities"], axis=-1)
        png_name = next(key for key in signature.structured_outputs if key.startswith("restored_png"))
        return {
            png_name: np.array([*map(_png, found["restored"]), None], dtype=object)[:-1],
            "probabilities": found["probabilities"],
            "label": np.array([self.record["classes"][index].encode() for index in likelier], dtype=object),
            **_judgements(judged),
        }

    def _check(self, array, name, spec):
        if not spec.shape.is_compatible_with(array.shape):
            raise RequestError(400, f"{name}: of shape {list(array.shape)}; {_dimensions(spec)} is needed")
        if 0 in array.shape:
            raise RequestError(400, f"{name}: nothing in it (shape {list(array.shape)})")
        if np.abs(array).max() > 1 + images.TOLERANCE:
            raise RequestError(400, f"{name}: values from {array.min():g} to {array.max():g}; images are in [-1, 1]")
        self._check_pixels(len(array), array.shape[1:3], name)

    def _check_files(self, encoded, name):
        if not encoded:
            raise RequestError(400, f"{name}: nothing in it")
        self._check_pixels(len(encoded), self.record["image_size"], name)
        try:
            sizes = [raster.count_pixels(f"{name}[{number}]", data) for number, data in enumerate(encoded)]
        except images.ImageError as error:
            raise RequestError(400, str(error)) from error
        decoded = sum(sizes)
        if decoded > self.max_decoded:
            raise RequestError(
                413, f"{name}: {decoded} pixels in all files; at most {self.max_decoded} a request are decoded"
            )

        if max(sizes) > MAX_FILE_PIXELS:
            raise RequestError(
                400,
                f"{name}: an image of {max(sizes)} pixels; at most {MAX_FILE_PIXELS // 1_000_000} million are decoded",
            )

    def _check_pixels(self, count, size, name):
        pixels = count * math.prod(size)
        if pixels > self.max_pixels:
            raise RequestError(
                413,
                f"{name}: {count} images of {size[0]} x {size[1]} are {pixels} pixels; "
                f"at most {self.max_pixels} a request go through the network",
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


def _run(signature, array):
    """The outputs of a signature of pixels, as arrays."""
    import tensorflow as tf

    try:
        return {key: value.numpy() for key, value in signature(image=tf.constant(array)).items()}
    except tf.errors.ResourceExhaustedError as error:
        raise RequestError(503, "not enough memory for this request") from error
    except tf.errors.OpError as error:
        raise RequestError(400, _reason(error)) from error


def _judgements(judged):
    """(score, warning) of each image -> further outputs: `unlikeness` and `warning`; none of no images."""
    if not judged:
        return {}
    warnings = [(warning or "").encode() for _, warning in judged]
    scores = np.array([score for score, _ in judged], np.float32)
    return {"unlikeness": scores, "warning": np.array(warnings, dtype=object)}


def _png(image):
    pixels = images.to_uint(image)
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels)[1].tobytes()


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
    return [_bytes(value) for value in values]


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


def _inflate(body, encoding, max_body):
    """The body of a request as it was before it was compressed."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise RequestError(415, f"Content-Encoding {encoding!r}; a body is taken as it is, or compressed by gzip")
    try:
        with gzip.open(io.BytesIO(body)) as file:
            plain = file.read(max_body + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(400, f"not gzip ({error})") from error
    if len(plain) > max_body:
        raise RequestError(413, f"the request is larger than {max_body} bytes when it is unpacked")
    return plain


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


def application(model, name="r2c_gan", workers=2, queue=32, max_body=32 * 2**20, body_seconds=60, still_seconds=10):
    """The web application.

    Args:
        model: a `ServedModel`.
        name: name of the model in the addresses.
        workers: requests computed at once.
        queue: requests that may wait besides; more are answered with 503.
        max_body: bytes of a request.
        body_seconds: seconds that a request's body may take to arrive.
        still_seconds: seconds in which nothing of it arrives, after which it is given up.

    Returns:
        A `starlette.applications.Starlette`.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    executor = ThreadPoolExecutor(workers, thread_name_prefix="predict")
    accepted, memory = 0, _Memory((workers + queue) * max_body)
    metadata = model.metadata(name)

    def check_name(request):
        if request.path_params["name"] != name:
            raise RequestError(404, f"no model {request.path_params['name']!r}; there is {name!r}")
        if request.path_params.get("version", VERSION) != VERSION:
            raise RequestError(404, f"no version {request.path_params['version']!r} of {name!r}; there is {VERSION}")

    def check_room():
        if accepted >= workers + queue:
            raise RequestError(503, "too many requests at once; try again later")

    async def predict(request):
        nonlocal accepted
        check_name(request)
        check_room()
        with contextlib.closing(_Body(request, max_body, memory)) as arriving:
            try:
                async with asyncio.timeout(body_seconds):
                    body = await arriving.read(still_seconds)
            except TimeoutError as error:
                raise RequestError(
                    408, f"the request took longer than {body_seconds} s to arrive, or was still for {still_seconds} s"
                ) from error
            except asyncio.CancelledError as error:
                raise RequestError(503, "the server is being stopped") from error
        check_room()  # only now: a body that does not come must keep nobody out
        accepted += 1
        try:
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


class _Memory:
    """Bytes that the bodies of all requests that are arriving may take together."""

    def __init__(self, free):
        self.free = free


class _Body:
    """The body of a request, which is thrown away as it comes if it is too large."""

    def __init__(self, request, max_body, memory):
        self._request, self._max_body, self._memory, self._taken = request, max_body, memory, 0

    def close(self):
        """Gives its memory back."""
        self._memory.free += self._taken
        self._taken = 0

    async def read(self, still_seconds):
        from starlette.requests import ClientDisconnect

        chunks, size = [], 0
        stream, loop = self._request.stream(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(still_seconds) as still:
                async for chunk in stream:
                    still.reschedule(loop.time() + still_seconds)
                    size += len(chunk)
                    if size <= self._max_body:
                        if len(chunk) > self._memory.free:
                            raise RequestError(503, "too many large requests at once; try again later")
                        self._memory.free -= len(chunk)
                        self._taken += len(chunk)
                        chunks.append(chunk)
                    else:
                        chunks.clear()
                        self.close()
                        if size > DISCARD_FACTOR * self._max_body:
                            break
        except ClientDisconnect as error:
            raise RequestError(400, "the request broke off") from error
        if size > self._max_body:
            raise RequestError(413, f"the request is larger than {self._max_body} bytes")
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
            """Whether a request, its head or its body, is waited for."""
            return self._waits_for_head() or (self.cycle.more_body and not self.cycle.response_started)

        def _waits_for_head(self):
            return self.cycle is None or self.cycle.response_complete

        def data_received(self, data):
            waited = self._waits_for_head()
            super().data_received(data)
            if waited and not self._waits_for_head():
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

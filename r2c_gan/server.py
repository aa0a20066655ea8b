"""A small server of one exported model, with the REST interface of TensorFlow Serving's predict.

    POST /v1/models/NAME[/versions/1]:predict     {"signature_name": ..., "instances": [...]} or {..., "inputs": {...}}
    GET  /v1/models/NAME[/versions/1]             whether it can be used
    GET  /v1/models/NAME[/versions/1]/metadata    its signatures

An error is `{"error": "..."}` with 400 (the request is wrong), 404 (no such model), 408 (its body did not come in
time), 413 (too large), 503 (too many requests at once). A request is computed by itself, so a bad one fails alone.
"""

import asyncio
import base64
import binascii
import contextlib
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from r2c_gan import images, saved_models
from r2c_gan.errors import UserError

VERSION = "1"  # TensorFlow Serving numbers the models under a name; here there is one
# TensorFlow Serving writes bytes as base64 under these names. Of a PNG under another name it writes no valid JSON, so
# here that is base64 too.
BYTES_SUFFIXES = ("_bytes", "_png")
# What is left of a body that is too large is read and thrown away, so that the client gets to see the answer.
DISCARD_FACTOR = 4
IDLE_SECONDS = 30  # after which an idle connection is closed


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

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, folder, max_pixels):
        self._loaded, self.record = saved_models.load(folder)
        self.folder = Path(folder)
        self.max_pixels = max_pixels
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
        return _answer(outputs, by_row)

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
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"not base64 ({error})") from error


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
            answer = await asyncio.get_running_loop().run_in_executor(executor, model.predict, body)
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
        executor.shutdown(cancel_futures=True)

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


class Server:
    """Serves an application until it is stopped.

    Args:
        app: what `application` gives.
        host: address to listen at.
        port: port to listen at; 0 for any that is free.

    Attributes:
        url: where it listens.

    Raises:
        UserError: if it cannot listen there.
    """

    def __init__(self, app, host="127.0.0.1", port=8501):
        import uvicorn

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sends small parts of an answer at once only where the protocol is named; else each waits 40 ms.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(128)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise UserError(f"--host={host} --port={port}: cannot listen there ({error})") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app, http="h11", ws="none", log_level="error", server_header=False, timeout_keep_alive=IDLE_SECONDS
        )
        self._server = uvicorn.Server(config)

    def run(self):
        """Serves until Ctrl-C or SIGTERM; requests that are being computed are answered first."""
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

"""Programs of our own, started without the seconds that their imports take.

A fork server imports Keras, TensorFlow and what else is slow once, computes nothing, and forks for each program.
`python(*arguments)` is a command that can be started wherever `[sys.executable, *arguments]` can: a small client, which
hands its arguments, folder, environment and three streams to the server, passes signals on, and ends as the program
does. Where the interpreter's own start is the subject of a test (what is imported, what is missing, the locale, limits
of the process), start `sys.executable` itself.
"""

import contextlib
import json
import os
import signal
import socket
import sys

# Read when these libraries are imported: with another value, a program is started in the ordinary way.
READ_AT_IMPORT = ("CUDA_", "JAX_", "KERAS_", "LANG", "LC_", "MPL", "OMP_", "PYTHON", "TF_", "XLA_")
SLOW = (
    *("cv2", "h5py", "keras", "matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.Image", "pydicom"),
    *("scipy.ndimage", "scipy.stats", "sklearn.linear_model", "sklearn.metrics", "tensorflow"),
)
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
ORDINARY = b"ordinary"  # the server's answer to a program that it cannot start

_server = None  # (process, address)


def python(*arguments):
    """A command that does what `[sys.executable, *arguments]` does, for arguments that begin with -m or -c."""
    global _server
    if not hasattr(os, "pidfd_open"):  # which Linux has
        return [sys.executable, *map(str, arguments)]
    if _server is None:
        _server = _start_server()
    return [sys.executable, "-I", "-S", __file__, _server[1], *map(str, arguments)]


def stop():
    """Ends the server of this process, if there is one."""
    import shutil

    global _server
    if _server is not None:
        process, address = _server
        process.stdin.close()
        process.wait()
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)
        _server = None


def _start_server():
    import subprocess
    import tempfile

    address = os.path.join(tempfile.mkdtemp(prefix="programs-"), "socket")  # short: there is room for 100 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)  # clients wait here while the server imports
        process = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdin=subprocess.PIPE,  # its end is the server's
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    return process, address


# --- the client ------------------------------------------------------------------------------------------------------


def _client(address, arguments):
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
        except OSError:  # somebody has tidied the temporary folder
            os.execv(sys.executable, [sys.executable, *arguments])
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        socket.send_fds(server, [len(text).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(text)
        answer = server.recv(16)
    if answer == ORDINARY:
        os.execv(sys.executable, [sys.executable, *arguments])
    code = int(answer or 70)  # none: the server has ended
    if code < 0:
        with contextlib.suppress(OSError):  # of SIGKILL there is no other
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


# --- the server ------------------------------------------------------------------------------------------------------


def _serve(listener):
    """Forks a process for every client, until standard input ends. Returns in each of these, with its client's wish."""
    import gc
    import importlib
    import select
    import warnings

    for name in SLOW:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    running = {}  # client and process number of every process, by its file descriptor
    while True:
        clients = {client: process for client, process in running.values()}
        ready, _, _ = select.select([sys.stdin, listener, *clients, *running], [], [])
        if sys.stdin in ready:
            for process in clients.values():
                os.kill(process, signal.SIGKILL)
            sys.exit()
        for client in filter(clients.get, ready):
            number = client.recv(1)
            os.kill(clients[client], number[0] if number else signal.SIGKILL)  # without a client, no program
        for descriptor in filter(running.get, ready):
            client, process = running.pop(descriptor)
            _, status = os.waitpid(process, 0)
            with contextlib.suppress(OSError):
                client.send(b"%d" % os.waitstatus_to_exitcode(status))
            client.close()
            os.close(descriptor)
        if listener in ready:
            client, _ = listener.accept()
            request = _read(client)
            if request is None:
                client.send(ORDINARY)
                client.close()
                continue
            process = os.fork()
            if process == 0:
                listener.close()
                for other in (client, *clients):
                    other.close()
                return request
            for stream in request["streams"]:
                os.close(stream)
            running[os.pidfd_open(process)] = client, process


def _read(client):
    """A client's wish, with its streams; None if it needs an interpreter of its own."""
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(size, "big")))
    names = {name for name in {**request["environment"], **os.environ} if name.startswith(READ_AT_IMPORT)}
    same = all(request["environment"].get(name) == os.environ.get(name) for name in names - {"PYTHONPATH"})
    if same and request["arguments"][0] in ("-c", "-m") and len(streams) == 3:
        return {**request, "streams": streams}
    for stream in streams:
        os.close(stream)
    return None


def _become(request):
    """Makes of this process what the interpreter, started anew, would be."""
    import random
    import tempfile
    import types

    import numpy as np

    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    # Streams of its own: what these ones know of the server's, they would hold on to.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # what the server has found to be it
    random.seed()
    np.random.seed()
    kind, what, *rest = request["arguments"]
    path = os.environ.get("PYTHONPATH", "")
    sys.path[0] = os.getcwd() if kind == "-m" else ""
    sys.path[1:1] = path.split(os.pathsep) if path else []
    sys.argv = [kind, *rest]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-m":
        import runpy

        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), main.__dict__)


def _end(function, *arguments):
    """Calls it and ends as the interpreter does, but without taking every module apart, which takes its time."""
    import atexit
    import threading

    code = 0
    try:
        function(*arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _end(_become, _serve(socket.socket(fileno=int(sys.argv[1]))))
    else:
        _client(sys.argv[1], sys.argv[2:])

"""A local web page that restores one radiograph at a time: poor and restored under a slider, difference, probabilities.

  r2c-gan-view --model runs/paper

It needs the extra `view`, works without a network, and deletes what was uploaded when it ends (Ctrl-C), or at its next
start if it was killed.
Research only, not for diagnosis.
"""

import importlib.util
import logging
import os
import signal
import socket
import tempfile
import threading

from absl import flags

from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import Interrupted, UserError

FLAGS = flags.FLAGS
SCRATCH = "r2c-gan-view-"

flags.DEFINE_string("model", None, "A run folder, a SavedModel of r2c-gan-export, or pretrained.")
flags.DEFINE_string("checkpoint", "auto", "Of a run: latest, best, an epoch, or auto (best if validated, else latest).")
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on. Any but a loopback address opens it to the network.")
flags.DEFINE_integer("port", 7860, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
flags.DEFINE_integer("max_upload_mb", 100, "Largest file taken, in megabytes.", lower_bound=1)
flags.DEFINE_float("max_megapixels", 40, "Most pixels of an image taken, in millions.", lower_bound=0.001)
flags.DEFINE_bool("force", False, "Take DICOM files, too, whose header says that they show no chest radiograph.")
flags.mark_flag_as_required("model")


def main():
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the viewer needs Gradio: pip install 'r2c-gan[view]'")
    port = free_port(FLAGS.host, FLAGS.port)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    previous = tempfile.tempdir
    files.sweep_scratch(tempfile.gettempdir(), SCRATCH)
    with files.scratch_folder(tempfile.gettempdir(), SCRATCH) as scratch:
        tempfile.tempdir = folder = str(scratch)  # half-read uploads too
        try:
            _serve(folder, port)
        except KeyboardInterrupt:
            print("stopped")
        finally:
            tempfile.tempdir = previous


def _serve(folder, port):
    program.start_tensorflow()
    _keep_offline(folder)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # Gradio's calls of its own server
    logging.getLogger("httpx").setLevel(logging.WARNING)
    import gradio as gr
    import numpy as np

    from r2c_gan.data import plausibility
    from r2c_gan.restoration.restorer import Restorer
    from r2c_gan.serving.viewer import page

    restorer = Restorer.load(FLAGS.model, FLAGS.checkpoint)
    if restorer.films is None:
        print(f"note: {plausibility.MISSING}", flush=True)
    restorer.restore(np.zeros((*restorer.size, restorer.channels), np.float32))  # so that the first image is not slow
    work = os.path.join(folder, "download")
    os.mkdir(work)
    blocks = page.build(restorer, FLAGS.model, work, FLAGS.max_megapixels, FLAGS.max_upload_mb, FLAGS.force)
    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    # `launch`, not `mount_gradio_app`: only then does Gradio refuse paths on this machine that were not uploaded.
    blocks.launch(
        server_name=FLAGS.host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inline=False,
        ssr_mode=False,
        run_history=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=FLAGS.max_upload_mb * 1_000_000,
        allowed_paths=[str(page.HERE / "examples")],
        theme=gr.themes.Default(primary_hue="blue", font=fonts, font_mono=fonts),
        css=(page.HERE / "style.css").read_text(encoding="utf-8"),
    )
    try:
        print(f"http://{FLAGS.host}:{port}/  (Ctrl-C ends it)\nResearch only, not for diagnosis.", flush=True)
        if FLAGS.host not in ("127.0.0.1", "localhost", "::1"):
            print(f"warning: --host={FLAGS.host}: whoever reaches this machine can use the page", flush=True)
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def free_port(host, port):
    """The port to listen on: `port`, or a free one if it is 0.

    Raises:
        UserError: if it is taken, or the address is not of this machine.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port}: cannot listen there ({error}); give another --port") from error


def _keep_offline(folder):
    """No analytics, no version check, no proxy between Gradio and its own server; uploads in `folder`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = folder
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name)
        os.environ[name] = ",".join(filter(None, [known, "127.0.0.1", "localhost", FLAGS.host]))


def _end(number, frame):
    raise Interrupted("the viewer was asked to end", number)


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()

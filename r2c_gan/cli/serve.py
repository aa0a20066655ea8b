"""Serves an exported model over HTTP, with the REST interface of TensorFlow Serving's predict. Research only.

  r2c-gan-export --model runs/paper --output exported/
  r2c-gan-serve --model exported/ --port 8501
  curl http://127.0.0.1:8501/v1/models/r2c_gan

A request: POST /v1/models/r2c_gan:predict with
{"signature_name": "serve_encoded", "instances": [{"b64": "<base64 of a PNG or JPEG file>"}]}.

It has no passwords and no encryption, and listens to this machine alone unless told otherwise.
"""

from absl import flags

from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A SavedModel of r2c-gan-export.")
flags.DEFINE_string("name", "r2c_gan", "Name of the model in the addresses.")
flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 lets other machines in.")
flags.DEFINE_integer("port", 8501, "Port to listen at; 0 for any that is free.")
flags.DEFINE_integer("workers", 2, "Requests computed at once.")
flags.DEFINE_integer("queue", 32, "Requests that may wait besides; more are answered with 503.")
flags.DEFINE_integer("max_body_mb", 32, "Size of a request, in MiB; larger ones are answered with 413.")
flags.DEFINE_integer("max_pixels", 2**20, "Pixels that a request may put through the network, its images together.")
flags.DEFINE_integer("max_decoded_megapixels", 160, "Pixels of the files of a request, together, in millions.")
flags.DEFINE_integer("max_connections", 256, "Connections at once; one more closes the one that is idle for longest.")
flags.mark_flag_as_required("model")


def main():
    positive = ("workers", "max_body_mb", "max_pixels", "max_decoded_megapixels", "max_connections")
    for name, least in (("port", 0), ("queue", 0), *((name, 1) for name in positive)):
        if FLAGS[name].value < least:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least {least}")
    try:
        import orjson  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving needs {error.name}; pip install 'r2c-gan[serve]'") from error
    program.start_tensorflow()
    from r2c_gan.serving import server

    model = server.ServedModel(FLAGS.model, FLAGS.max_pixels, FLAGS.max_decoded_megapixels * 1_000_000)
    app = server.application(model, FLAGS.name, FLAGS.workers, FLAGS.queue, FLAGS.max_body_mb * 2**20)
    listening = server.Server(app, FLAGS.host, FLAGS.port, FLAGS.max_connections)
    print(f"{FLAGS.model} at {listening.url}/v1/models/{FLAGS.name}. Research only, not for diagnosis.", flush=True)
    listening.run()


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()

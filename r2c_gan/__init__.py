"""R2C-GAN: blind restoration of chest X-rays by a network that diagnoses while it restores. Research only."""

__version__ = "0.1.0"

# Names that TensorFlow or Keras stand behind are imported when first asked for, so that `--help` and the tools that
# only touch pixels start at once.
_PUBLIC = {
    "Evaluation": "evaluation",
    "ImagePool": "image_pool",
    "LinearDecay": "schedules",
    "LossWeights": "losses",
    "OperationalConv2D": "layers",
    "OperationalConv2DTranspose": "layers",
    "R2CGAN": "model",
    "ReflectionPadding2D": "layers",
    "Restorer": "restoration",
    "TrainingConfig": "training",
    "build_discriminator": "networks",
    "build_generator": "networks",
    "export_saved_model": "export",
    "train": "training",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted(__all__)

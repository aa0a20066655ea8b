"""R2C-GAN: blind restoration of chest X-rays by a network that diagnoses while it restores. Research only."""

__version__ = "0.1.0"

# Names that TensorFlow or Keras stand behind are imported when first asked for, so that `--help` and the tools that
# only touch pixels start at once.
_PUBLIC = {
    "Evaluation": "evaluation.evaluation",
    "ImagePool": "models.image_pool",
    "LinearDecay": "models.schedules",
    "LossWeights": "models.losses",
    "NetworkOptions": "options.network",
    "OperationalConv2D": "layers.operational",
    "OperationalConv2DTranspose": "layers.operational",
    "R2CGAN": "models.model",
    "ReflectionPadding2D": "layers.operational",
    "Restorer": "restoration.restorer",
    "TrainingConfig": "training.configuration",
    "build_discriminator": "models.networks",
    "build_generator": "models.networks",
    "export_saved_model": "serving.export",
    "read_image": "data.images",
    "train": "training.trainer",
    "write_image": "data.images",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted(__all__)

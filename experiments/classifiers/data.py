"""The images of a plain classifier: what it is trained and validated on, as they are or restored."""

import os
import warnings
from pathlib import Path

import numpy as np

from r2c_gan import files
from r2c_gan.data import datasets as data
from r2c_gan.data import images
from r2c_gan.data.datasets import CLASSES, Domain, read_domain, reference_images
from r2c_gan.data.streams import read_batches
from r2c_gan.errors import UserError

TRAINING_DOMAINS = ("trainA", "trainB", "both")


def domains_of(config):
    """The images to train on and those to validate on.

    Returns:
        A tuple of two `Domain`s.

    Raises:
        UserError: if a folder is missing or empty, or has images of one class only.
    """
    datasets = Path(config.datasets_dir)
    folders = ("trainA", "trainB") if config.train_on == "both" else (config.train_on,)
    parts = [_labelled(_folder(datasets, name, "train_on"), "--train_on") for name in folders]
    training = parts[0]
    if len(parts) > 1:
        labels = np.concatenate([part.labels for part in parts])
        training = Domain(datasets, sum((part.files for part in parts), ()), labels)
    if config.validate_on:
        return training, _labelled(_folder(datasets, config.validate_on, "validate_on"), "--validate_on")
    poor = datasets / "valA"
    clean = next((folder for folder in (datasets / "valA_reference", datasets / "valB") if folder.is_dir()), None)
    if config.train_on != "trainB" or clean is None:
        return training, _labelled(poor, "--validate_on")
    if clean.name == "valA_reference":
        return training, reference_images(_labelled(poor, "--validate_on"), clean)
    return training, _labelled(clean, "--validate_on")


def _folder(datasets, name, flag):
    """A folder below the datasets folder, or any other."""
    if (datasets / name).is_dir():
        return datasets / name
    if name not in TRAINING_DOMAINS and Path(name).is_dir():
        return Path(name)
    raise UserError(f"--{flag}={name}: neither a folder of {datasets} nor a folder of labelled images")


def _labelled(folder, flag):
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make one, or name another with {flag}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*needs both classes")  # said below, as an error
        domain = read_domain(folder)
    if len(set(domain.labels.tolist())) < len(CLASSES):
        raise UserError(f"{folder}: all its images are of one class; a classifier needs both")
    return domain


def restored_copy(domain, restorer, folder, batch_size=16, progress=lambda batches: batches):
    """A domain's images restored, at the restorer's size, as 16-bit PNG and a labels file; made once.

    Args:
        domain: a `Domain` of poor images.
        restorer: a `Restorer` of a square size.
        folder: where to write them; if it exists it is taken as it is.
        batch_size: images a batch.
        progress: wraps the iterable of batches, for a progress bar.

    Returns:
        The `Domain` of the restored images.

    Raises:
        UserError: if an image cannot be read or written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.sweep_scratch(folder.parent, f".{folder.name}.")
        with files.scratch_folder(folder.parent, f".{folder.name}.") as temporary:
            rows = []
            for start in progress(range(0, len(domain), batch_size)):
                chosen = domain.files[start : start + batch_size]
                (poor,) = read_batches(chosen, restorer.size[0], restorer.channels, len(chosen))
                for file, image in zip(chosen, restorer(poor).passes[0], strict=True):
                    name = file.relative_to(domain.folder).with_suffix(".png").as_posix()
                    images.write_image(temporary / "images" / name, np.clip(image, -1, 1), bits=16)
                    rows.append({"file": name, "label": CLASSES[domain.labels[len(rows)]]})
            files.write_csv(temporary / "images" / data.LABELS_FILE, rows, ["file", "label"])
            os.rename(temporary / "images", folder)
    return read_domain(folder)

"""What a run is trained on: names, labels, sizes and checksums of its images, kept in the run folder.

    RUN/data.json    {"format": 1, "domains": {"trainA": [[name, label, bytes, SHA-256], ...], ...}}

A run that goes on with other images would be neither the old run nor a new one.
"""

import concurrent.futures
import os
from pathlib import Path

from absl import logging

from r2c_gan import files
from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError

DATA = "data.json"
FORMAT = 1


def describe(domains, progress=lambda files: files):
    """Describes the images of domains.

    Args:
        domains: dictionary, name -> `Domain`.
        progress: wraps the iterable of files, for a progress bar.

    Returns:
        Dictionary, name of the domain -> list of [path below the domain's folder, label, bytes, SHA-256].

    Raises:
        UserError: if a file cannot be read.
    """

    def line(item):
        _, domain, file, label = item
        try:
            size, checksum = file.stat().st_size, files.sha256(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from error
        return [file.relative_to(domain.folder).as_posix(), CLASSES[label], size, checksum]

    items = [
        (name, domain, file, label)
        for name, domain in domains.items()
        for file, label in zip(domain.files, domain.labels, strict=True)
    ]
    found = {name: [] for name in domains}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as readers:
        for (name, *_), described in zip(progress(items), readers.map(line, items), strict=True):
            found[name].append(described)
    return found


def check(run, now):
    """Checks that the images are those that the run was trained on.

    A run of a version that kept no record is taken as it is, with a warning.

    Args:
        run: the run folder.
        now: what `describe` returns.

    Raises:
        UserError: if an image or its label is another one, naming the first; or if the record is damaged.
    """
    path = Path(run) / DATA
    if not path.exists():
        logging.warning(
            "%s: has no %s, because its version kept none: whether these are its images is not checked", run, DATA
        )
        return
    before = _read(path)
    differences = [text for name in sorted({*before, *now}) for text in _differences(name, before, now)]
    if differences:
        more = f" ({len(differences)} differences in all)" if len(differences) > 1 else ""
        raise UserError(
            f"{run}: was trained on other images: {differences[0]}{more}. Give the same images, or another --output_dir"
        )


def write(run, now):
    """Writes `data.json`."""
    files.write_json(Path(run) / DATA, {"format": FORMAT, "domains": now})


def _read(path):
    record = files.read_json(path)
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, not {FORMAT}")
        domains = record["domains"]
        for lines in domains.values():
            for name, label, size, checksum in lines:
                if [type(value) for value in (name, label, size, checksum)] != [str, str, int, str]:
                    raise ValueError(f"a line of {name!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it to go on without the check that the images are the same"
        ) from error
    return domains


def _differences(domain, before, now):
    if domain not in now:
        yield f"{domain}/ is gone"
        return
    if domain not in before:
        yield f"{domain}/ is new"
        return
    old, new = ({name: rest for name, *rest in side[domain]} for side in (before, now))
    for name in sorted({*old, *new}):
        file = f"{domain}/{name}"
        if name not in new:
            yield f"{file} is gone"
        elif name not in old:
            yield f"{file} is new"
        elif old[name][0] != new[name][0]:
            yield f"{file} was labelled {old[name][0]} and is now {new[name][0]}"
        elif old[name] != new[name]:
            yield f"{file} has other contents ({old[name][1]} bytes before, {new[name][1]} now)"

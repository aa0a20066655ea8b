"""A datasets folder -> labelled lists of files.

A datasets folder holds `trainA/` (poor quality) and `trainB/` (good), and optionally `valA/ valB/ testA/ testB/` and
`testA_reference/` (the reference images of `testA/`, under the same names). `data.labels` says where labels come from.
Masks beside the films (`x_mask.png`, `mask_x.png`, folders such as `masks/` and `Ground-truths/`) are passed over.
"""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from r2c_gan.data import images, labels
from r2c_gan.data.labels import CLASSES, LABEL_NAMES, LABELS_FILE
from r2c_gan.errors import UserError, reason, shown

__all__ = [
    "CLASSES",
    "LABELS_FILE",
    "LABEL_NAMES",
    "Domain",
    "balanced_class_weights",
    "check_images",
    "is_two_valued",
    "read_domain",
    "reference_images",
    "usable_cases",
    "why_no_film",
]

TWO_VALUED = 0.1
"""A picture of which a smaller share lies between black and white is a mask; of films, 0.48 or more does.

Counted are pixels farther than 1/16 of the range from both of its ends; measured on 196 radiographs of four
collections, as they are and severely degraded.
"""

MASK = "two gray values only: a mask, no radiograph"
NAMED = 10  # files that cannot be used are named one by one up to this many


@dataclasses.dataclass(frozen=True)
class Domain:
    """The labelled images of one folder, sorted by path.

    Attributes:
        folder: the folder.
        files: tuple of `pathlib.Path`.
        labels: int64 [len(files)], an index into `CLASSES`.
        rule: what gave the labels: the name of a labels file, "class folders" or "file names".
        masks: tuple of `pathlib.Path`, the files that were passed over as masks.
    """

    folder: Path
    files: tuple
    labels: np.ndarray
    rule: str = ""
    masks: tuple = ()

    def __len__(self):
        return len(self.files)

    def summary(self):
        """What it holds, as a line: "trainA: 626 images (320 control, 306 covid; labels from class folders)"."""
        counts = np.bincount(self.labels, minlength=len(CLASSES))
        parts = [", ".join(f"{count} {name}" for count, name in zip(counts, CLASSES, strict=True))]
        parts += [f"labels from {self.rule}"] if self.rule else []
        parts += [f"{_number(self.masks, 'mask')} passed over"] if self.masks else []
        return f"{self.folder.name}: {_number(self.files, 'image')} ({'; '.join(parts)})"


def _number(things, name):
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def read_domain(folder, limit=None):
    """Lists the images of one domain and their labels.

    Args:
        folder: a folder such as `trainA/`.
        limit: keep this many images, spread evenly over the sorted list; all by default.

    Returns:
        A `Domain`. A domain with one class only gives a `UserWarning`.

    Raises:
        UserError: if the folder is missing or holds no image, a label is unknown or not certain, the labels file and
            the folder do not hold the same files, or a name is not UTF-8.
    """
    folder = Path(folder)
    found = images.list_images(folder, recursive=True)
    masks = [file for file in found if labels.is_mask(file.relative_to(folder))]
    files = sorted(set(found) - set(masks))
    if not files:
        but = f"but {_number(masks, 'mask')} (such as {masks[0].name})" if masks else ", ".join(images.IMAGE_SUFFIXES)
        raise UserError(f"{folder}: holds no image ({but})")
    _refuse([file for file in files if shown(file) != str(file)], "the name is not UTF-8 text; rename it")
    classes, rule = _labels(folder, files, masks)
    if limit is not None and limit < len(files):
        kept = np.linspace(0, len(files) - 1, limit).round().astype(int)
        files, classes = [files[index] for index in kept], [classes[index] for index in kept]
    if len(set(classes)) == 1:
        warnings.warn(
            f"{folder}: all {len(files)} images are labelled {CLASSES[classes[0]]!r}; the classifier needs both "
            f"classes (labels from {rule})",
            stacklevel=2,
        )
    return Domain(folder, tuple(files), np.array(classes, np.int64), rule, tuple(masks))


def _refuse(files, why):
    if files:
        raise UserError(f"{shown(files[0])}: {why} ({len(files)} such files)")


def _labels(folder, files, masks):
    """The classes of the files of a domain, and the rule that gave them."""
    if labels_files := labels.labels_files(folder):
        return _labels_from_files(labels_files, folder, files, masks)
    hint = f"or give labels in {LABELS_FILE} (file,label)"
    inside = [file.relative_to(folder).parts[:-1] for file in files]
    class_folders = sorted({parents[0] for parents in inside if parents})
    if class_folders:
        for name in class_folders:
            if labels.class_of(name) is None:
                raise UserError(f"{folder / name}: a class folder: {labels.unknown(name)}, {hint}")
        stray = [file for file, parents in zip(files, inside, strict=True) if not parents]
        _refuse(stray, f"lies beside class folders ({', '.join(class_folders)}); move it into one of them, {hint}")
        return [labels.class_of(parents[0]) for parents in inside], labels.FROM_FOLDERS
    classes, unclear = {}, {}
    for file in files:
        try:
            classes[file] = labels.class_of_name(file.stem)
        except ValueError as error:
            unclear[file] = str(error)
    if unclear:
        why = next(iter(unclear.values()))
        ask = f"the name does not tell whether it shows COVID-19 ({why}); use class folders (covid, control), {hint}"
        _refuse(list(unclear), ask)
    return list(classes.values()), labels.FROM_NAMES


def _labels_from_files(labels_files, folder, files, masks):
    known, used, masks = {}, {}, set(masks)
    for labels_file in labels_files:
        for line, path, label in labels.read_labels(labels_file):
            if not path.is_relative_to(folder) or path in masks:
                continue
            if path in known:
                raise UserError(
                    f"{labels_file}, line {line}: {path.relative_to(labels_file.parent)} has a label already"
                )
            known[path], used[path] = label, labels_file
    names = " and ".join(map(str, labels_files))
    unlabelled = [file for file in files if file not in known]
    if unlabelled:
        hint = "" if known else f"; the paths in it must be relative to {labels_files[0].parent}"
        raise UserError(f"{unlabelled[0]}: has no label in {names} ({len(unlabelled)} such files){hint}")
    missing = sorted(set(known) - set(files))
    if missing:
        raise UserError(f"{used[missing[0]]}: {missing[0]} is not in the folder ({len(missing)} such rows)")
    rule = " and ".join(sorted({file.name for file in used.values()}))
    return [known[file] for file in files], rule


def reference_images(domain, folder):
    """The images of a folder that have the names of a domain's (the suffix may differ), in its order, with its labels.

    Args:
        domain: a `Domain`.
        folder: such as `testA_reference/`.

    Returns:
        A `Domain`.

    Raises:
        UserError: if an image has no twin.
    """
    folder = Path(folder)
    found = {file.relative_to(folder).with_suffix(""): file for file in images.list_images(folder, recursive=True)}
    twins = [found.get(file.relative_to(domain.folder).with_suffix("")) for file in domain.files]
    if None in twins:
        first = domain.files[twins.index(None)]
        raise UserError(f"{first}: has no image of the same name in {folder} ({twins.count(None)} such files)")
    return Domain(folder, tuple(twins), domain.labels)


def check_images(domains, progress=lambda files: files, window="auto"):
    """Decodes every image once, so that broken files are named before the training and not in the middle of it.

    Args:
        domains: the `Domain`s.
        progress: wraps the iterable of files, for a progress bar.
        window: which stored values become black and white, a `Window` or its text.

    Raises:
        ImageError: if files cannot be decoded or show no film; it says how many, and names the first ten with the
            reason of each.
    """
    every = [file for domain in domains for file in domain.files]
    wrong = [f"{file}: {why}" for file in progress(every) if (why := why_no_film(file, window))]
    if len(wrong) == 1:
        raise images.ImageError(wrong[0])
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise images.ImageError(f"{len(wrong)} of {len(every)} images cannot be used: {'; '.join(wrong[:NAMED])}{more}")


def why_no_film(path, window="auto"):
    """Decodes a file: None, or why it cannot be used, as a line that does not name it."""
    try:
        return MASK if is_two_valued(images.read_image(path, 1, window)) else None
    except Exception as error:  # of a decoder, whatever it is: one bad file among many
        return reason(error, path)


def usable_cases(domain, reference_dir=None, progress=lambda files: files, window="auto"):
    """The part of a domain whose images, and reference images, can be used.

    Args:
        domain: a `Domain`.
        reference_dir: folder of the reference images, or None.
        progress: wraps the iterable of files, for a progress bar.
        window: which stored values become black and white, a `Window` or its text.

    Returns:
        (the `Domain` of those, list of {"file", "reason"} of the others).

    Raises:
        UserError: if none is left, or an image has no twin.
    """
    twins = reference_images(domain, reference_dir).files if reference_dir else [None] * len(domain)
    kept, failures = [], []
    for index, file in enumerate(progress(domain.files)):
        why = why_no_film(file, window)
        if not why and twins[index] and (why := why_no_film(twins[index], window)):
            why = f"its reference image {twins[index]}: {why}"
        if why:
            failures.append({"file": file.relative_to(domain.folder).as_posix(), "reason": why})
        else:
            kept.append(index)
    if not kept:
        raise UserError(f"{domain.folder}: no image can be used; {failures[0]['file']}: {failures[0]['reason']}")
    files = tuple(domain.files[index] for index in kept)
    return dataclasses.replace(domain, files=files, labels=domain.labels[kept]), failures


def is_two_valued(image):
    """Whether a picture is all but black and white, as a mask is, also one that was resized or saved as JPEG.

    Args:
        image: float array of gray values.
    """
    low, high = float(image.min()), float(image.max())
    margin = (high - low) / 16
    return low < high and np.mean((image > low + margin) & (image < high - margin)) < TWO_VALUED


def balanced_class_weights(domains):
    """For each class, the number of the domains' images over that of the class, over the number of classes.

    Raises:
        UserError: if a class has no image.
    """
    known = np.concatenate([domain.labels for domain in domains])
    counts = np.bincount(known, minlength=len(CLASSES))
    if not counts.all():
        raise UserError(f"--class_weights=balanced: no training image is of class {CLASSES[int(counts.argmin())]}")
    return tuple(float(weight) for weight in len(known) / (len(CLASSES) * counts))

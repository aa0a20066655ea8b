"""Writes a study: the folder that readers get, and the key that they do not get."""

import base64
import contextlib
import hashlib
import html
import json
import os
from pathlib import Path

import cv2
import numpy as np

from experiments.reader_study import design
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError

READERS_FOLDER, KEY_FILE = "for_readers", "key.json"
KEY_FORMAT, VERSION = "r2c-gan reader study key", 1
PAGE = Path(__file__).parent / "page"
SCRIPTS = ("answers.js", "viewport.js", "study.js")

_ONE_TIME = 946_684_800  # 2000-01-01: times of writing would tell the order, and which image was handled first


def write_study(output_dir, pairs, repeats, seed, title, max_side, allow_no_preference, progress=iter):
    """Writes `output_dir/for_readers/` and `output_dir/key.json`, all or nothing.

    Args:
        output_dir: a folder that is missing or empty.
        pairs: the cases, a list of `pairs.Pair`.
        repeats: number of cases shown twice.
        seed: seed of everything random.
        title: heading of the page.
        max_side: larger images are reduced to this many pixels a side.
        allow_no_preference: whether a reader may decline to choose.
        progress: wraps the iterable of presentations.

    Returns:
        The key, a dict as it is written.

    Raises:
        UserError: if the folder is not empty, an image cannot be read, or the two of a pair differ in shape.
    """
    rng = np.random.default_rng(seed)
    shown = design.draw_presentations([pair.label for pair in pairs], repeats, rng)
    tokens = _tokens(rng, 3 * len(shown))
    with _new_folder(output_dir) as folder:
        readers = folder / READERS_FOLDER
        (readers / "images").mkdir(parents=True)
        presentations, digest = [], hashlib.sha256()
        for place, presentation in enumerate(progress(shown)):
            identity, *names = tokens[3 * place : 3 * place + 3]
            encoded = _encode_pair(pairs[presentation.case], max_side)
            entry = {"id": identity, "case": presentation.case, "repeat": presentation.repeat}
            entry["restored_side"] = presentation.restored_side
            entry["diagnosed_side"] = presentation.side_of(presentation.diagnosed)
            for side, name in zip(design.SIDES, names, strict=True):
                entry[side] = f"images/{name}.png"
                pixels = encoded[presentation.image_on(side)]
                (readers / entry[side]).write_bytes(pixels)
                digest.update(pixels)
            presentations.append(entry)
        public = {
            "allow_no_preference": allow_no_preference,
            "presentations": [
                {"id": entry["id"], "left": entry["left"], "right": entry["right"], "diagnose": entry["diagnosed_side"]}
                for entry in presentations
            ],
        }
        # Of what readers see alone, so that the id they see says no more.
        digest.update(json.dumps([public, title]).encode())
        public["study"] = study = digest.hexdigest()[:12]
        (readers / "index.html").write_text(page(title, public), encoding="utf-8")
        for path in sorted([*readers.rglob("*"), readers], reverse=True):
            os.utime(path, (_ONE_TIME, _ONE_TIME))
        key = {
            "format": KEY_FORMAT,
            "version": VERSION,
            "study": study,
            "title": title,
            "seed": seed,
            "allow_no_preference": allow_no_preference,
            "cases": [
                {
                    "name": pair.name,
                    "label": pair.label,
                    "patient": pair.patient,
                    "original_sha256": files.sha256(pair.original),
                    "restored_sha256": files.sha256(pair.restored),
                }
                for pair in pairs
            ],
            "presentations": presentations,
        }
        files.write_json(folder / KEY_FILE, key)
    return key


def _tokens(rng, number):
    """Different random names."""
    found = {}
    while len(found) < number:
        found[rng.bytes(6).hex()] = None
    return list(found)


def _encode_pair(pair, max_side):
    """{"original": PNG bytes, "restored": PNG bytes}: 8-bit gray, one size, pixels and nothing else."""
    original, restored = images.read_image(pair.original, 1), images.read_image(pair.restored, 1)
    height, width = original.shape[:2]
    # A network's output may be off by the rounding of one resize, not more.
    if abs(restored.shape[0] * width - restored.shape[1] * height) > max(restored.shape[:2]) + max(height, width):
        sizes = " and ".join(f"{image.shape[1]} x {image.shape[0]}" for image in (restored, original))
        raise UserError(f"{pair.restored}: has not the shape of {pair.original} ({sizes} pixels)")
    scale = min(1, max_side / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    encoded = {}
    for name, image in (("original", original), ("restored", restored)):
        pixels = images.to_uint(np.clip(images.resize(image, height, width), -1, 1))
        encoded[name] = cv2.imencode(".png", pixels)[1].tobytes()
    return encoded


def page(title, study):
    """The page as one HTML document: style, scripts and the study inside, images beside it, nothing from elsewhere.

    Its content security policy lets the browser load images of its own folder and these scripts, and nothing else.

    Args:
        title: its heading.
        study: what `study.js` reads, JSON-able. Everything in it is public to readers.
    """
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "TITLE": html.escape(title),
        "SCRIPT_HASH": script_hash,
        "STYLE": (PAGE / "style.css").read_text(encoding="utf-8"),
        "STUDY": json.dumps(study).replace("<", "\\u003c"),
        "SCRIPT": script,
    }
    document = (PAGE / "index.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        document = document.replace("{{" + name + "}}", text)
    return document


@contextlib.contextmanager
def _new_folder(path):
    """Yields a temporary folder beside `path` and renames it to `path` if the block succeeds."""
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"--output_dir={path}: is not empty; a study is never overwritten, give another folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir={path}: is a file; give a folder")
    parent, prefix = path.absolute().parent, f".{path.name}."
    try:
        parent.mkdir(parents=True, exist_ok=True)
        files.sweep_scratch(parent, prefix)
        with files.scratch_folder(parent, prefix) as temporary:
            (temporary / "new").mkdir()
            yield temporary / "new"
            (temporary / "new").replace(path)
    except OSError as error:
        raise UserError(f"--output_dir={path}: cannot be written ({error.strerror})") from error

"""Reading the key and the readers' files, with every answer checked, and unblinding them."""

import datetime
import math
import re
from pathlib import Path

from experiments.reader_study.design import IMAGES, SIDES, other
from experiments.reader_study.study import KEY_FORMAT, VERSION
from r2c_gan import files
from r2c_gan.data import datasets as data
from r2c_gan.errors import UserError

FORMAT = "r2c-gan reader study answers"
RATINGS = range(1, 6)
NO_PREFERENCE = "none"
COLUMNS = (
    *("reader", "id", "case", "label", "patient", "repeat", "restored_side", "preferred_side", "preferred"),
    *("rating_original", "rating_restored", "diagnosed", "covid", "correct"),
    *("seconds_diagnosis", "seconds_pair", "answered"),
)


def _is_text(value):
    return isinstance(value, str) and value != ""


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seconds(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_time(value):
    try:
        return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_rating(value):
    return _is_integer(value) and value in RATINGS


def _is_reader(value):
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", value) is not None


def _one_of(*values):
    return lambda value: isinstance(value, str) and value in values


# Field -> (what it must be, in words).
_FILE = {
    "format": (_one_of(FORMAT), repr(FORMAT)),
    "version": (lambda value: _is_integer(value) and value == VERSION, f"{VERSION}"),
    "study": (_is_text, "the study's id"),
    "reader": (_is_reader, "a code name of small letters, digits and hyphens, up to 24"),
    "consented": (_is_time, "the time of the reader's consent"),
    "saved": (_is_time, "a time"),
    "presentations": (_is_integer, "a number"),
    "answers": (lambda value: isinstance(value, list), "a list"),
}
_ANSWER = {
    "id": (_is_text, "a pair's id"),
    "diagnosed_side": (_one_of(*SIDES), "left or right"),
    "covid": (lambda value: isinstance(value, bool), "true or false"),
    "preferred": (_one_of(*SIDES, NO_PREFERENCE), "left, right or none"),
    "rating_left": (_is_rating, "an integer from 1 to 5"),
    "rating_right": (_is_rating, "an integer from 1 to 5"),
    "seconds_diagnosis": (_is_seconds, "a number of seconds"),
    "seconds_pair": (_is_seconds, "a number of seconds"),
    "answered": (_is_time, "a time"),
}
_KEY = {
    "format": (_one_of(KEY_FORMAT), repr(KEY_FORMAT)),
    "version": _FILE["version"],
    "study": _FILE["study"],
    "title": (_is_text, "a text"),
    "seed": (_is_integer, "a number"),
    "allow_no_preference": _ANSWER["covid"],
    "cases": _FILE["answers"],
    "presentations": _FILE["answers"],
}
_CASE = {
    "name": (_is_text, "a text"),
    "label": (_one_of(*data.CLASSES), " or ".join(data.CLASSES)),
    "patient": (_is_text, "a text"),
    "original_sha256": (_is_text, "a text"),
    "restored_sha256": (_is_text, "a text"),
}
_PRESENTATION = {
    "id": _ANSWER["id"],
    "case": (_is_integer, "the number of a case"),
    "repeat": _ANSWER["covid"],
    "restored_side": _ANSWER["diagnosed_side"],
    "diagnosed_side": _ANSWER["diagnosed_side"],
    "left": (_is_text, "a file"),
    "right": (_is_text, "a file"),
}


def _check(value, fields, where):
    """Raises `UserError` unless `value` is an object with exactly these fields, each as it must be."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object with the fields {', '.join(fields)}")
    for name, (is_right, words) in fields.items():
        if name not in value:
            raise UserError(f"{where}: {name!r} is missing")
        if not is_right(value[name]):
            raise UserError(f"{where}: {name!r} is {str(value[name])[:60]!r}; it must be {words}")
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise UserError(f"{where}: has an unknown field {unknown[0]!r}")


def read_key(path):
    """Reads and checks the key of a study.

    Raises:
        UserError: if it is missing or is no such key.
    """
    key = files.read_json(path)
    _check(key, _KEY, path)
    for index, case in enumerate(key["cases"]):
        _check(case, _CASE, f"{path}: case {index}")
    for index, presentation in enumerate(key["presentations"]):
        where = f"{path}: presentation {index}"
        _check(presentation, _PRESENTATION, where)
        if not 0 <= presentation["case"] < len(key["cases"]):
            raise UserError(f"{where}: there is no case {presentation['case']}")
    if len({presentation["id"] for presentation in key["presentations"]}) != len(key["presentations"]):
        raise UserError(f"{path}: an id occurs twice")
    return key


def find_files(names):
    """The answer files of a list of files and folders (of which the `.json` files are taken), each once.

    Raises:
        UserError: if one does not exist, or there is none.
    """
    found = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            found |= {file.resolve(): file for file in sorted(path.glob("*.json"))}
        elif path.exists():
            found[path.resolve()] = path
        else:
            raise UserError(f"--answers={name}: no such file or folder")
    if not found:
        raise UserError(f"--answers={','.join(map(str, names))}: holds no .json file")
    return list(found.values())


def read_answers(paths, key):
    """Reads answer files, checks every answer against the key, and joins the files of one reader.

    A reader who saved twice gives two files; they are joined if they agree.

    Args:
        paths: the files.
        key: what `read_key` returned.

    Returns:
        ({reader: {presentation id: answer}}, notes): notes are lines about joined and incomplete files.

    Raises:
        UserError: naming the file that is malformed, of another study, holds an unknown or doubled pair, or contradicts
            another file of the same reader; or if there is no answer at all.
    """
    readers, sources, notes = {}, {}, []
    for path in paths:
        document = files.read_json(path)
        _check_file(document, key, path)
        reader = document["reader"]
        known = readers.setdefault(reader, {})
        for answer in document["answers"]:
            if known.get(answer["id"], answer) != answer:
                raise UserError(
                    f"{path}: contradicts {' and '.join(map(str, sources[reader]))}: reader {reader!r} answered pair "
                    f"{answer['id']} twice, differently; keep the right file, or give the two readers code names"
                )
            known[answer["id"]] = answer
        sources.setdefault(reader, []).append(path)
    total = len(key["presentations"])
    for reader, answers in readers.items():
        names = " and ".join(str(path) for path in sources[reader])
        if len(sources[reader]) > 1:
            notes.append(f"{names} are of one reader, {reader!r}, and agree: joined.")
        if len(answers) < total:
            notes.append(f"{names}: incomplete, {len(answers)} of {total} pairs; what is there is used.")
    readers = {reader: answers for reader, answers in sorted(readers.items()) if answers}
    if not readers:
        raise UserError(f"{paths[0]}: there is no answer in any of the {len(paths)} files")
    return readers, notes


def _check_file(document, key, path):
    _check(document, _FILE, path)
    if document["study"] != key["study"]:
        raise UserError(f"{path}: is of study {document['study']!r}; the key is of study {key['study']!r}")
    if document["presentations"] != len(key["presentations"]):
        expected = len(key["presentations"])
        raise UserError(f"{path}: 'presentations' is {document['presentations']}; this study has {expected}")
    known, seen = {presentation["id"] for presentation in key["presentations"]}, set()
    for index, answer in enumerate(document["answers"]):
        where = f"{path}: answer {index + 1}"
        _check(answer, _ANSWER, where)
        if answer["id"] not in known:
            raise UserError(f"{where}: pair {answer['id']!r} is not of this study")
        if answer["id"] in seen:
            raise UserError(f"{where}: pair {answer['id']} is answered twice in this file")
        if answer["preferred"] == NO_PREFERENCE and not key["allow_no_preference"]:
            raise UserError(f"{where}: 'preferred' is 'none', which this study did not offer")
        seen.add(answer["id"])


def unblind(readers, key):
    """The answers in terms of original and restored: one dict of `COLUMNS` an answer, by reader, in order of showing.

    Args:
        readers: what `read_answers` returned.
        key: what `read_key` returned.
    """
    rows = []
    for reader, answers in readers.items():
        for shown in key["presentations"]:
            answer = answers.get(shown["id"])
            if answer is None:
                continue
            case = key["cases"][shown["case"]]
            on_side = {shown["restored_side"]: "restored", other(SIDES, shown["restored_side"]): "original"}
            rating = {image: answer[f"rating_{side}"] for side, image in on_side.items()}
            rows.append(
                {
                    "reader": reader,
                    "id": shown["id"],
                    "case": case["name"],
                    "label": case["label"],
                    "patient": case["patient"],
                    "repeat": shown["repeat"],
                    "restored_side": shown["restored_side"],
                    "preferred_side": answer["preferred"],
                    "preferred": on_side.get(answer["preferred"], NO_PREFERENCE),
                    **{f"rating_{image}": rating[image] for image in IMAGES},
                    "diagnosed": on_side[answer["diagnosed_side"]],
                    "covid": answer["covid"],
                    "correct": answer["covid"] == (case["label"] == "covid"),
                    **{name: answer[name] for name in ("seconds_diagnosis", "seconds_pair", "answered")},
                }
            )
    return rows

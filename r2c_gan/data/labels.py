"""What says whether a radiograph shows COVID-19, and what is no radiograph but a mask.

A label comes from, in this order: a `labels.csv` (columns file,label) in the domain's folder or in the datasets folder,
paths relative to it; sub-folders named after the classes; the word "covid" in the file's own name, as the authors have
it. A name that holds "covid" beside a negation or a doubt, or only as a part of a word, is refused: a wrong label is
worse than none. Numbers say nothing: "covid_0" is the first of a series.
"""

import csv
import io
import re
from pathlib import Path

from r2c_gan.errors import UserError
from r2c_gan.files import CsvReader

CLASSES = ("control", "covid")
# What a labels file or a class folder may say, in lower case.
LABEL_NAMES = {
    **dict.fromkeys(("control", "normal", "negative", "non-covid", "no-covid", "covid-negative", "no", "0"), 0),
    **dict.fromkeys(("covid", "covid-19", "positive", "covid-positive", "yes", "1"), 1),
}
LABELS_FILE = "labels.csv"

FROM_NAMES, FROM_FOLDERS = "file names", "class folders"

_BETWEEN = re.compile(r"(?<=[a-z0-9])[\s_-]+(?=[a-z0-9])")
_COVID = re.compile("covid", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_]+")
# How capitals may divide letters into words: "testNeg", "PCRNeg"; "PCRneg". All readings count, the undivided one too.
_DIVISIONS = (re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+"), re.compile(r"[A-Z]{2,}|[A-Z]?[a-z]+"))
_NEGATION = re.compile(
    r"n|no|non|none|nor|not|nil|null|neg.*|.*neg|.*negativ.*|never|without|wo|free|un|anti|false|minus|absen.*|lack.*|"
    r"exclud.*|exclusion|rul(e|ed|es|ing)|reject.*|den(y|ied|ies)|refuted?|undetected|uninfected|"
    r"other|others|than|normal|controls?|healthy|"
    r"sin|sans|sem|senza|ohne|kein.*|nicht|zonder|geen"
)
# Words that leave open whether the patient has COVID-19 at the time of the image.
_DOUBT = re.compile(
    r"pre|post|ex|former(ly)?|prior|previous(ly)?|past|history|before|after|recover.*|convalescen.*|healed|resolved|"
    r"cured|survivors?|suspect.*|suspicion|suspicious|possibl[ey]|probabl[ey]|presum.*|likely|unlikely|maybe|perhaps|"
    r"doubt.*|uncertain|unclear|unknown|unconfirmed|unproven|equivocal|indeterminate|inconclusive|pending|query|"
    r"question.*|differential|ddx|vs|versus|mimic.*|like|long|screen.*|vaccin.*|exposed|contacts?"
)
# Signs that say the same: (-), -ve, a minus that ends a word or begins the name, a question mark, "covid=0", "!covid".
_SIGN = re.compile(
    r"\(-\)|(?<![+])\bve\b(?![+])|(?<=[^\W_])-(?=\s*[_)\].]|$)|^-|\?|[=:]\s*0(?!\d)|[!~\u00ac]\s*(?=covid)",
    re.IGNORECASE,
)
_MINUS = re.compile("[\u2010-\u2015\u2212\uff0d]")
_OTHER_WORDS = re.compile(
    r"positive|corona(?=virus|[^a-z]|$)|ncov|sars[^a-z0-9]*cov|c[0\u03bf\u043e]v[i1l]d|cov[1l]d", re.IGNORECASE
)
_MASK_FOLDER = re.compile(r".*masks?|groundtruths?")  # as `_letters` writes them
_MASK_FILE = re.compile(r"(?<![a-z])((lungs?|infections?|left|right)?masks?|ground[ _-]?truths?)(?![a-z])")


def class_of(text):
    """The class that a labels file or a class folder means, an index into `CLASSES`, or None.

    Capitals do not matter, nor do spaces, hyphens and underscores inside: "Non_COVID" is "non-covid".
    """
    return _SPELLINGS.get(_spelling(text))


def _spelling(text):
    return _BETWEEN.sub("", text.strip().lower())


_SPELLINGS = {_spelling(name): label for name, label in LABEL_NAMES.items()}


def unknown(text):
    """What is wrong with a label that `class_of` does not know."""
    return f"unknown label {text!r}; it must be one of {', '.join(LABEL_NAMES)}"


def class_of_name(name):
    """The class that a file's own name tells: "covid" as a word of its own, or not at all.

    Args:
        name: a file's name, with or without suffix.

    Returns:
        An index into `CLASSES`.

    Raises:
        ValueError: where the name does not tell for sure; it says why.
    """
    found = list(_COVID.finditer(name))
    if not found:
        if other := _OTHER_WORDS.search(name):
            raise ValueError(f"{other[0]!r} without 'covid'")
        return 0
    if not all(_is_word(name, match) for match in found):
        raise ValueError("'covid' is a part of a longer word")
    if sign := _SIGN.search(_MINUS.sub("-", name).replace("_", " _ ")):
        raise ValueError(f"'covid' beside {sign[0].strip()!r}")
    for word in _words(_COVID.sub(" ", name)):
        if _NEGATION.fullmatch(word.lower()) or _DOUBT.fullmatch(word.lower()):
            raise ValueError(f"'covid' beside {word!r}")
    return 1


def _words(text):
    """The words that a text may hold, by every reading of its capitals."""
    for letters in _LETTERS.findall(text):
        yield letters
        for division in _DIVISIONS:
            yield from division.findall(letters)


def _is_word(name, match):
    """Whether neighbours are no letters, or capitals tell the words apart, as in `testCovidPositive`."""
    before, after = name[: match.start()][-1:], name[match.end() :]
    begins = not before.isalpha() or (before.islower() and match[0][0].isupper())
    ends = not after[:1].isalpha() or after[0].isupper() != match[0][-1].isupper()
    return begins and (ends or (after[0].isupper() and after[1:2].islower()))


def is_mask(path):
    """Whether a path, relative to the folder of the images, is that of a mask: `x_mask.png`, or in `Ground-truths/`."""
    path = Path(path)
    folders = (re.sub(r"[^a-z0-9]", "", folder.lower()) for folder in path.parts[:-1])
    return bool(_MASK_FILE.search(path.stem.lower())) or any(map(_MASK_FOLDER.fullmatch, folders))


def labels_files(folder):
    """The labels files that bear on a domain: in its folder, and in the datasets folder; their case does not matter.

    Args:
        folder: the domain's folder.

    Returns:
        A list of paths.

    Raises:
        UserError: if a folder holds two, or one that is not a file.
    """
    folder, found = Path(folder), []
    for place in dict.fromkeys((folder, folder.parent)):
        try:
            here = sorted(path for path in place.iterdir() if path.name.lower() == LABELS_FILE)
        except OSError:  # a folder that may be passed through but not listed
            here = [path for path in [place / LABELS_FILE] if path.is_file()]
        if len(here) > 1:
            raise UserError(f"{here[0]}: beside it lies {here[1].name}; keep one of them")
        if here and not here[0].is_file():
            raise UserError(f"{here[0]}: not a file")
        found += here
    return found


def read_labels(path):
    """Reads a labels file.

    Args:
        path: a CSV file with the columns file,label.

    Yields:
        (line number, path of the image, class).

    Raises:
        UserError: if it cannot be read, or at the first row that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for line, row in csv_rows(path, text, ("file", "label")):
        if not row["file"]:
            raise UserError(f"{path}, line {line}: names no file")
        label = class_of(row["label"] or "")
        if label is None:
            raise UserError(f"{path}, line {line}: {unknown(row['label'] or '')}")
        yield line, path.parent / row["file"], label


def csv_rows(path, text, columns):
    """The rows of a CSV file with a header line.

    No cell may go over several lines: of a quotation mark that is not closed nothing else can be told.

    Args:
        path: the file, for errors.
        text: what it holds.
        columns: those that it must have.

    Yields:
        (line number, dictionary of the row); a cell that is missing is None.

    Raises:
        UserError: if a column is missing or there twice, or a row is no CSV.
    """
    if "\0" in text:
        raise UserError(f"{path}: not a text file")
    reader, line = CsvReader(io.StringIO(text, newline=""), strict=True), 0
    try:
        names = reader.fieldnames or ()
        if not set(columns) <= set(names):
            raise UserError(f"{path}: its first line must name the columns {','.join(columns)}")
        if twice := [name for name in columns if list(names).count(name) > 1]:
            raise UserError(f"{path}: its first line names the column {twice[0]} twice")
        line = reader.line_num
        for row in reader:
            cells = [cell for cell in row.values() if isinstance(cell, str)]
            if any("\n" in cell or "\r" in cell for cell in cells):
                raise csv.Error("unexpected line break")
            line = reader.line_num
            yield line, row
    except csv.Error as error:
        # An open quotation mark takes in the lines that follow, until the next one, the end or the csv module's limit.
        why = "a quotation mark is opened and not closed in this line, or stands inside a cell and is not doubled"
        raise UserError(f"{path}, line {line + 1}: {why}") from error

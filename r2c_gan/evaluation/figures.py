"""Pictures of a run: losses, classification, restored images. Each function writes one PNG, atomically.

Matplotlib's `Figure` is used directly, not `pyplot`: nothing is global, so the functions may run in any thread. Colours
are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

import math

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from sklearn.metrics import roc_curve

from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.evaluation import metrics

DPI = 150

_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _AMBER, _BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)  # Okabe and Ito 2008
_SERIES_COLORS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _AMBER, _BLACK)
_TITLE_SIZE, _TEXT_SIZE, _SMALL_SIZE = 10, 9, 8


# --- Losses -----------------------------------------------------------------------------------------------------------

_TOTALS = ("generator_loss", "discriminator_loss", "loss")
_SCORES = ("accuracy", "sensitivity", "specificity", "precision", "f1", "f2", "auroc", "psnr", "ssim")
_QUALITIES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
_FAMILIES = (  # prefix of the columns, title of the panel
    ("adversarial_", "Adversarial: fooling the discriminators"),
    ("discriminator_", "Discriminators: telling real from generated"),
    ("cycle_", "Cycle consistency: there and back"),
    ("identity_", "Identity: a domain's own images kept"),
    ("tone_", "Tone: moments and range of whole images"),
    ("class_", "Classification of what a generator is fed"),
)
_LOG_FROM = 20  # a panel whose largest value is this many times its smallest gets a logarithmic axis
_SMOOTH_FROM = 100  # epochs from which a running mean is drawn over the faint curve


def save_losses(history, path):
    """Draws the course of training: one panel for each family of losses.

    Args:
        history: dict, column of `history.csv` -> one value an epoch. `epoch` gives the horizontal axis (1, 2, ... if it
            is missing). Drawn are `generator_loss`, `discriminator_loss`, `loss`, the columns that begin with
            `adversarial_`, `discriminator_`, `cycle_`, `identity_`, `tone_`, `class_`, `psnr` or `ssim`, the scores
            (`f1`, ...) and `learning_rate`; with a prefix `val_`, dashed. Other columns are left alone. A value that is
            None, empty or not finite is a gap.
        path: the PNG to write.
    """
    columns = {name: np.array([_number(value) for value in values]) for name, values in history.items()}
    epochs = columns.get("epoch", np.arange(1, 1 + max((len(values) for values in columns.values()), default=0)))
    panels = _loss_panels(columns)
    width = min(3, len(panels))
    height = math.ceil(len(panels) / width)
    figure = Figure(figsize=(4.4 * width, 3.1 * height), layout="constrained")
    all_axes = figure.subplots(height, width, squeeze=False).ravel()
    for axes, (title, names) in zip(all_axes, panels.items(), strict=False):
        _draw_series(axes, title, epochs, {name: columns[name] for name in names})
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    key = ["A: poor quality, B: good quality"] if "generator_loss" in columns else []
    if any(name.startswith("val_") for names in panels.values() for name in names):
        key.append("solid: training, dashed: validation")
    if len(epochs) >= _SMOOTH_FROM:
        key.append("faint: every epoch, strong: running mean")
    figure.supxlabel(".   ".join(key), fontsize=_SMALL_SIZE, color="0.3")
    save(figure, path)


def _number(value):
    return math.nan if value is None or value == "" else float(value)


def _loss_panels(columns):
    """Title -> names of the columns, in drawing order; a validation column follows its training column."""

    def present(names):
        return [name for base in names for name in (base, f"val_{base}") if name in columns]

    bases = list(dict.fromkeys(name.removeprefix("val_") for name in columns))
    panels = {"Total losses": present(_TOTALS)}
    for prefix, title in _FAMILIES:
        panels[title] = present([name for name in bases if name.startswith(prefix) and name not in _TOTALS])
    panels["Scores"] = present([name for name in _SCORES if name not in _QUALITIES])
    for name, title in _QUALITIES.items():
        # `Evaluation` measures the input and each pass of restoration: psnr_input, psnr_restored, ...
        panels[title] = present([base for base in bases if base == name or base.startswith(f"{name}_")])
    panels["Learning rate"] = present(["learning_rate"])
    return {title: names for title, names in panels.items() if names} or {"No losses recorded": []}


def _draw_series(axes, title, epochs, series):
    bases = list(dict.fromkeys(name.removeprefix("val_") for name in series))
    colors = {name: _SERIES_COLORS[k % len(_SERIES_COLORS)] for k, name in enumerate(bases)}
    drawn = [np.empty(0)]
    for name, values in series.items():
        kept = np.isfinite(values)
        x, y = epochs[: len(values)][kept], values[kept]
        base = name.removeprefix("val_")
        validation = name != base
        drawn.append(y)
        if len(x) >= _SMOOTH_FROM and base != "learning_rate":
            axes.plot(x, y, color=colors[base], linewidth=0.6, alpha=0.25)
            y = _running_mean(y, max(3, len(y) // 50))
        axes.plot(
            x,
            y,
            color=colors[base],
            linewidth=1.4,
            linestyle="--" if validation else "-",
            marker="o" if len(x) <= 30 else None,
            markersize=3.5,
            markerfacecolor="white" if validation else None,
        )
    _set_scale(axes, np.concatenate(drawn), title)
    legend_columns = 2 if len(bases) == 4 else 3
    lines = math.ceil(len(bases) / legend_columns) if len(bases) > 1 else 0
    if lines:
        handles = [Line2D([], [], color=colors[base], linewidth=2.5) for base in bases]
        where = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": legend_columns}
        text = {"fontsize": _SMALL_SIZE, "handlelength": 1, "columnspacing": 1.2, "labelspacing": 0.2}
        axes.legend(handles, [_series_label(base) for base in bases], frameon=False, **where, **text)
    axes.set_title(title, fontsize=_TITLE_SIZE, loc="left", pad=6 + 12 * lines)
    axes.set_xlabel("epoch", fontsize=_SMALL_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=_SMALL_SIZE)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _series_label(name):
    """`class_a2b` -> "A → B", `cycle_a` -> "A → B → A", `discriminator_a_fake` -> "A, generated"."""
    if name in _SCORES:
        return name.upper() if name in ("f1", "f2", "auroc", "psnr", "ssim") else name
    if name in _TOTALS:
        return name.replace("_loss", "s")
    if name.startswith(tuple(f"{quality}_" for quality in _QUALITIES)):
        return name.partition("_")[2].replace("_", " ")
    family = next((prefix for prefix, _ in _FAMILIES if name.startswith(prefix)), "")
    domain, *others = name.removeprefix(family).split("_")
    if family == "cycle_":
        domain = {"a": "a2b2a", "b": "b2a2b"}.get(domain, domain)
    elif family == "identity_":
        domain = f"{domain}2{domain}"
    domains = " → ".join(domain.upper().split("2"))
    return ", ".join([domains, *("generated" if other == "fake" else other for other in others)])


def _set_scale(axes, values, title):
    """Logarithmic where a loss falls far, else from 0, so that a flat course looks flat."""
    if not len(values):
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, fontsize=_SMALL_SIZE, color="0.4")
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if title == "Scores":
        axes.set_ylim(0, 1.03)
    elif title not in ("Learning rate", "PSNR (dB)") and 0 < values.min() * _LOG_FROM < values.max():
        axes.set_yscale("log")
        decades = math.log10(values.max() / values.min())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values.min() >= 0 and title != "PSNR (dB)":
        axes.set_ylim(0, 1.05 * values.max() or 1)
    # Plain numbers: no mathematical typesetting, whose parser is shared between threads.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _running_mean(values, window):
    """The mean over `window` values around each, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


# --- Classification ---------------------------------------------------------------------------------------------------


def save_roc(labels, probabilities, path, clusters=None, seed=0):
    """Draws the receiver operating characteristic, the decision taken, and AUROC with its 95% bootstrap interval.

    Args:
        labels: integers [N], 0 control, 1 COVID-19. With one class only the picture says that there is no curve.
        probabilities: floats [N, 2] or [N], as for `metrics.classification_metrics`.
        path: the PNG to write.
        clusters: one patient id a case, or None. See `metrics.bootstrap_interval`.
        seed: seed of the bootstrap.
    """
    result = metrics.classification_metrics(labels, probabilities)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    scores = probabilities if probabilities.ndim == 1 else probabilities[:, 1]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="chance (AUROC 0.5)")
    if result["auroc"] is None:
        axes.text(0.05, 0.9, "no curve: the cases are of one class", fontsize=_TEXT_SIZE)
    else:
        low, high = metrics.bootstrap_interval(metrics.auroc, labels, scores, clusters=clusters, seed=seed)
        false_positives, true_positives, _ = roc_curve(labels, scores, drop_intermediate=False)
        label = f"AUROC {result['auroc']:.3f}"
        if low < high:  # no resample of a perfect classifier differs, which says nothing about chance
            label += f" (95% interval {low:.3f} to {high:.3f})"
        axes.plot(false_positives, true_positives, color=_BLUE, linewidth=2, label=label, clip_on=False)
        label = f"decision taken: F1 {result['f1']:.3f}"
        point = [1 - result["specificity"]], [result["sensitivity"]]
        axes.plot(*point, "o", color=_ORANGE, markersize=8, markeredgecolor="white", label=label, clip_on=False)
    axes.set_xlabel("1 − specificity: share of controls called COVID-19", fontsize=_TEXT_SIZE)
    axes.set_ylabel("sensitivity: share of COVID-19 cases found", fontsize=_TEXT_SIZE)
    positives = int(labels.sum())
    title = f"ROC curve, {positives} COVID-19 and {len(labels) - positives} control images"
    axes.set_title(title, fontsize=_TITLE_SIZE, loc="left")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.tick_params(labelsize=_SMALL_SIZE)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=_SMALL_SIZE)
    save(figure, path)


def save_confusion_matrix(matrix, path, class_names=("control", "COVID-19")):
    """Draws counts of true class (rows) by decision (columns), with the share of the row.

    Args:
        matrix: integers [K, K], as `confusion_matrix` of `metrics.classification_metrics`.
        path: the PNG to write.
        class_names: K names.
    """
    matrix = np.asarray(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    size = 1.6 + 1.2 * len(matrix)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        share = f"{shares[row, column]:.1%}" if totals[row, 0] else "no cases"
        color = "white" if shares[row, column] > 0.5 else "black"
        place = {"ha": "center", "color": color}
        axes.text(column, row, f"{matrix[row, column]}", va="bottom", fontsize=15, **place)
        axes.text(column, row + 0.06, share, va="top", fontsize=_TEXT_SIZE, **place)
    axes.set_xticks(range(len(matrix)), class_names, fontsize=_TEXT_SIZE)
    axes.set_yticks(range(len(matrix)), class_names, fontsize=_TEXT_SIZE, rotation=90, va="center")
    axes.set_xlabel("decision", fontsize=_TITLE_SIZE)
    axes.set_ylabel("truth", fontsize=_TITLE_SIZE)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    correct = int(np.trace(matrix))
    axes.set_title(f"{correct} of {int(matrix.sum())} images decided correctly", fontsize=_TITLE_SIZE)
    save(figure, path)


# --- Images -----------------------------------------------------------------------------------------------------------

_CELL = 2.0  # inches, width of an image in a panel
_GAP = 0.06
_LINE = 0.16  # inches, height of a line of caption
_HEADER = 0.32
_ROW_TITLE = 0.3
_COLOR_BAR = 0.75


def save_panel(rows, path, column_titles, row_titles=None, captions=None, limits=(-1.0, 1.0)):
    """Draws a grid of images.

    Args:
        rows: a list of rows of images, float [H, W], [H, W, 1] or [H, W, 3] (RGB); None leaves a place empty.
        path: the PNG to write.
        column_titles: one text a column.
        row_titles: one text a row, written along its left side, or None.
        captions: a list of rows of short texts, written under the images, or None.
        limits: the values shown as black and as white.

    Raises:
        ValueError: if there is no image, or the lengths of rows, titles and captions differ.
    """
    figure, grid, _ = _grid(rows, column_titles, row_titles, captions)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, row, strict=True):
            _show(axes, image, limits)
    save(figure, path)


def save_restoration_panel(
    poor, restored, path, reference=None, probabilities=None, row_titles=None, difference_limit=0.5
):
    """Draws cases in rows: poor | restored, pass by pass | clean, where known | what the last pass has changed.

    PSNR against the clean image and p(COVID-19) are written under the images.

    Args:
        poor: list of N images, float [H, W], [H, W, 1] or [H, W, 3] in [-1, 1].
        restored: list over passes of lists of N images.
        path: the PNG to write.
        reference: list of N clean images (None where one is missing), or None.
        probabilities: p(COVID-19) by what the classifier was looking at: floats [K, N], row 0 for the poor images, row
            k for those restored k times, K at most 1 + passes; or None. The classifier of the first pass looks at the
            poor image.
        row_titles: one text a case, or None.
        difference_limit: the change (restored - poor, mean over channels) at the ends of the colour scale.

    Raises:
        ValueError: if there is no case, or lengths or image shapes differ.
    """
    passes = len(restored)
    stages = [list(poor), *(list(images_of_pass) for images_of_pass in restored)]
    if reference is not None:
        stages.append(list(reference))
    probabilities = [] if probabilities is None else probabilities
    titles = ["poor", "restored"] if passes == 1 else ["poor", *(f"restored, pass {k + 1}" for k in range(passes))]
    titles += [] if reference is None else ["clean"]
    rows = [list(row) for row in zip(*stages, strict=True)]
    captions = []
    for case, row in enumerate(rows):
        clean = None if reference is None else row[-1]
        captions.append([_caption(row[k], clean, k, case, probabilities) for k in range(1 + passes)])
        captions[-1] += [""] * (len(titles) - 1 - passes)
    lines = any(text for row in captions for text in row)
    cells = [[*row, row[0]] for row in rows]  # the last place is filled below; its size is that of the image
    all_captions = [[*row, ""] for row in captions] if lines else None
    figure, grid, bar = _grid(
        cells,
        [*titles, "restored − poor" if passes == 1 else f"pass {passes} − poor"],
        row_titles,
        all_captions,
        color_bar=True,
    )
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, row, strict=False):
            _show(axes, image, (-1, 1))
        difference = np.atleast_3d(row[passes]) - np.atleast_3d(row[0])
        scale = {"vmin": -difference_limit, "vmax": difference_limit}
        shown = axes_row[-1].imshow(difference.mean(axis=-1), cmap="RdBu_r", **scale)
    ticks = [-difference_limit, 0, difference_limit]
    figure.colorbar(shown, cax=bar, extend="both", ticks=ticks)
    bar.set_yticklabels(
        [f"−{difference_limit:g}\ndarker", "0", f"+{difference_limit:g}\nlighter"], fontsize=_SMALL_SIZE
    )
    save(figure, path)


def _caption(image, clean, stage, case, probabilities):
    parts = []
    if clean is not None:
        parts.append(f"{metrics.psnr(clean, image):.1f} dB")
    if stage < len(probabilities):
        parts.append(f"p(COVID-19) {probabilities[stage][case]:.2f}")
    return ",  ".join(parts)


def _grid(rows, column_titles, row_titles, captions, color_bar=False):
    """An empty grid of axes without ticks, sized so that images fill it, with all texts around them.

    Returns:
        The figure, the axes as a list of rows, and the axes for a colour bar (or None).
    """
    columns = len(column_titles)
    for name, texts in (("row_titles", row_titles), ("captions", captions)):
        if texts is not None and len(texts) != len(rows):
            raise ValueError(f"{len(texts)} {name} for {len(rows)} rows")
    if any(len(row) != columns for row in [*rows, *(captions or [])]):
        raise ValueError(f"each row needs {columns} places, one a column title")
    shapes = [np.shape(image) for row in rows for image in row if image is not None]
    if not shapes:
        raise ValueError("no images")
    cell_height = _CELL * float(np.median([shape[0] / shape[1] for shape in shapes]))
    left = _GAP + (_ROW_TITLE if row_titles is not None else 0)
    pitch_x = _CELL + _GAP
    pitch_y = cell_height + _GAP + (_LINE + _GAP if captions is not None else 0)
    width = left + columns * pitch_x + (_COLOR_BAR if color_bar else 0)
    height = _HEADER + len(rows) * pitch_y
    figure = Figure(figsize=(width, height))

    def add(x, top, w, h):  # in inches from the upper left corner
        return figure.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))

    grid = []
    for r in range(len(rows)):
        top = _HEADER + r * pitch_y
        grid.append([add(left + c * pitch_x, top, _CELL, cell_height) for c in range(columns)])
        if row_titles is not None:
            place = {"ha": "center", "va": "center", "rotation": 90, "fontsize": _SMALL_SIZE, "parse_math": False}
            x, y = (left - _GAP) / 2 / width, 1 - (top + cell_height / 2) / height
            figure.text(x, y, _shorten(row_titles[r], int(cell_height * 16)), **place)
        for c, axes in enumerate(grid[-1]):
            axes.set_axis_off()
            if captions is not None:
                place = {"ha": "center", "va": "top", "fontsize": _SMALL_SIZE, "parse_math": False}
                x, y = (left + c * pitch_x + _CELL / 2) / width, 1 - (top + cell_height + 0.05) / height
                figure.text(x, y, captions[r][c], **place)
    for c, title in enumerate(column_titles):
        x, y = (left + c * pitch_x + _CELL / 2) / width, 1 - _HEADER / 2 / height
        figure.text(x, y, title, ha="center", va="center", fontsize=_TITLE_SIZE, parse_math=False)
    bar = add(left + columns * pitch_x + _GAP, _HEADER, 0.12, min(cell_height, _CELL)) if color_bar else None
    return figure, grid, bar


def _shorten(text, longest):
    """Leaves out the middle of a text, as file names differ at both ends."""
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _show(axes, image, limits):
    if image is None:
        return
    image = np.asarray(image, np.float32)
    if image.ndim == 3 and image.shape[-1] == 3:
        axes.imshow(np.clip((image - limits[0]) / (limits[1] - limits[0]), 0, 1))
    else:
        axes.imshow(image.reshape(image.shape[:2]), cmap="gray", vmin=limits[0], vmax=limits[1])


# --- Training samples -------------------------------------------------------------------------------------------------

_SAMPLE_TITLES = ("poor", "restored", "cycled", "good", "degraded", "cycled")
_SEPARATOR = 2  # pixels; a wider one stands between the two cycles
_SMALLEST_SAMPLE = 128  # pixels; smaller images are enlarged by a whole factor, so that titles fit
_TITLE_HEIGHT = 18


def save_training_samples(a, a2b, a2b2a, b, b2a, b2a2b, path):
    """Writes the two cycles of a batch as a mosaic, one image pair a row: A, B(A), A(B(A)) | B, A(B), B(A(B)).

    Meant for use during training: pixels as they are, no plotting. What is not finite is black.

    Args:
        a: poor images, float [N, H, W, 1 or 3] in [-1, 1].
        a2b: a restored.
        a2b2a: a2b degraded again.
        b: good images, as many and as large as a.
        b2a: b degraded.
        b2a2b: b2a restored again.
        path: the PNG to write.

    Raises:
        ValueError: if the shapes differ.
    """
    batches = [np.nan_to_num(np.asarray(batch, np.float32), nan=-1) for batch in (a, a2b, a2b2a, b, b2a, b2a2b)]
    if any(batch.shape != batches[0].shape for batch in batches) or batches[0].ndim != 4:
        raise ValueError(f"six batches [N, H, W, C] of one shape are needed, got {[batch.shape for batch in batches]}")
    count, height, width, channels = batches[0].shape
    factor = math.ceil(_SMALLEST_SAMPLE / width)
    height, width = height * factor, width * factor
    pitch_x, pitch_y = width + _SEPARATOR, height + _SEPARATOR
    middle = 4 * _SEPARATOR
    mosaic = np.ones((_TITLE_HEIGHT + count * pitch_y, 6 * pitch_x - _SEPARATOR + middle, channels), np.float32)
    for column, batch in enumerate(batches):
        left = column * pitch_x + middle * (column >= 3)
        mosaic[:_TITLE_HEIGHT, left : left + width] = _sample_title(_SAMPLE_TITLES[column], width)
        for row, image in enumerate(batch):
            top = _TITLE_HEIGHT + row * pitch_y
            mosaic[top : top + height, left : left + width] = image.repeat(factor, axis=0).repeat(factor, axis=1)
    images.write_image(path, mosaic)


def _sample_title(text, width):
    """Black on white, float32 [_TITLE_HEIGHT, width, 1] in [-1, 1]."""
    strip = np.full((_TITLE_HEIGHT, width), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, _), _ = cv2.getTextSize(text, font, 0.45, 1)
    cv2.putText(strip, text, ((width - text_width) // 2, _TITLE_HEIGHT - 5), font, 0.45, 0, 1, cv2.LINE_AA)
    return images.from_uint(strip)[..., None]


def save(figure, path, dpi=DPI):
    """Writes a `matplotlib.figure.Figure` as PNG of `dpi` dots an inch, atomically.

    Raises:
        UserError: if the file cannot be written.
    """
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")

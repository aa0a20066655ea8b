"""The report of a reader study: Markdown with figures, from what `measures.analyse` found."""

import numpy as np
from matplotlib.figure import Figure

from experiments.reader_study.design import IMAGES
from experiments.reader_study.measures import FEW_READERS, PUBLISHED
from r2c_gan.evaluation import figures

DPI = 150
_COLORS = {"original": "#D55E00", "restored": "#0072B2"}  # Okabe and Ito 2008
_RATING_COLORS = ("#8c510a", "#d8b365", "#dcdcdc", "#5ab4ac", "#01665e")  # ColorBrewer BrBG, safe for colour-blind eyes
_WORDS = ("unusable", "poor", "fair", "good", "excellent")
_SCHEME_WORDS = {"readers_and_cases": "readers and cases", "cases": "cases", "readers": "readers"}


def main_interval(measure):
    """The widest claim that the data allow: (low, high, what it is). (None, None, None) where there is none.

    Bootstrap over readers and cases; over cases where there is one reader; Wilson's where nothing varies.
    """
    for scheme in ("readers_and_cases", "cases"):
        low, high = measure.get("bootstrap", {}).get(scheme, (None, None))
        if low is not None:
            return low, high, f"bootstrap over {_SCHEME_WORDS[scheme]}"
    if "wilson" in measure:
        return *measure["wilson"], "Wilson"
    return None, None, None


# --- Figures ----------------------------------------------------------------------------------------------------------


def save_figures(result, folder):
    """Writes `preference.png`, `ratings.png` and `diagnosis.png`."""
    save_preference(result, f"{folder}/preference.png")
    save_ratings(result["ratings"], f"{folder}/ratings.png")
    save_diagnosis(result["diagnosis"], f"{folder}/diagnosis.png")


def save_preference(result, path):
    """Draws how often the restored image was preferred: overall, by class, by reader, with 95% intervals."""
    preference = result["preference"]
    rows = [("all readers", preference["restored"], "#000000")]
    rows += [
        (f"{_label(name)} cases", measure, _COLORS["restored"]) for name, measure in preference["by_class"].items()
    ]
    rows += [(reader["reader"], reader["preference"], "0.35") for reader in result["per_reader"]]
    rows = [row for row in rows if row[1]]
    figure = Figure(figsize=(7.2, 1.5 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, measure, color) in enumerate(rows):
        _draw_interval(axes, place, measure, color, bold=place == 0)
        text = f"{measure['value']:.0%} of {measure['n']}"
        axes.text(1.02, place, text, va="center", fontsize=9, transform=axes.get_yaxis_transform())
    axes.axvline(0.5, color="0.5", linewidth=1, linestyle=":")
    axes.axvline(PUBLISHED["value"], color="#CC79A7", linewidth=1.4, linestyle="--")
    for place, text, color in ((0.5, "no preference", "0.35"), (PUBLISHED["value"], "paper, 68%", "#9c4b78")):
        axes.text(place, 1.01, text, color=color, ha="center", fontsize=8, transform=axes.get_xaxis_transform())
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    _percent_axis(axes)
    axes.set_xlabel("Restored image preferred (95% intervals)", fontsize=9)
    figures.save(figure, path)


def save_ratings(ratings, path):
    """Draws how often each rating was given to the original and to the restored images."""
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    axes = figure.subplots()
    for place, image in enumerate(IMAGES):
        counts = np.array(ratings["counts"][image], float)
        left = 0.0
        for index, share in enumerate(counts / max(1, counts.sum())):
            axes.barh(place, share, left=left, color=_RATING_COLORS[index], height=0.62)
            if share >= 0.04:
                white = index in (0, 4)
                axes.text(
                    *(left + share / 2, place, f"{share:.0%}"),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if white else "black",
                )
            left += share
        if ratings[image]:
            text = f"mean {ratings[image]['value']:.2f}"
            axes.text(1.02, place, text, va="center", fontsize=9, transform=axes.get_yaxis_transform())
    names = [f"{number} {word}" for number, word in enumerate(_WORDS, 1)]
    handles = [axes.barh(0, 0, color=color) for color in _RATING_COLORS]
    axes.legend(handles, names, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize=8)
    axes.set_yticks(range(2), IMAGES)
    axes.set_ylim(1.5, -0.5)
    axes.set_xlim(0, 1)
    _percent_axis(axes)
    axes.set_xlabel("Share of the ratings", fontsize=9)
    figures.save(figure, path)


def save_diagnosis(diagnosis, path):
    """Draws sensitivity, specificity and accuracy of the readers on original and on restored images."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, (_, measure) in enumerate(diagnosis.items()):
        for image, shift in zip(IMAGES, (-0.16, 0.16), strict=True):
            if measure[image]:
                _draw_interval(axes, place + shift, measure[image], _COLORS[image])
                text = f"{measure[image]['value']:.0%} of {measure[image]['n']}"
                axes.text(1.02, place + shift, text, va="center", fontsize=8, transform=axes.get_yaxis_transform())
    handles = [axes.plot([], [], "o-", color=_COLORS[image], label=f"{image} image")[0] for image in IMAGES]
    axes.legend(handles=handles, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize=9)
    axes.set_yticks(range(len(diagnosis)), list(diagnosis))
    axes.set_ylim(len(diagnosis) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    _percent_axis(axes)
    axes.set_xlabel("Readers' diagnosis from one image alone (95% intervals)", fontsize=9)
    figures.save(figure, path)


def _draw_interval(axes, place, measure, color, bold=False):
    low, high, _ = main_interval(measure)
    axes.plot([low, high], [place, place], color=color, linewidth=2.6 if bold else 1.6, solid_capstyle="butt", zorder=3)
    axes.plot(measure["value"], place, "D" if bold else "o", color=color, markersize=7 if bold else 6, clip_on=False)


def _percent_axis(axes):
    axes.set_xticks(np.linspace(0, 1, 6), [f"{percent}%" for percent in range(0, 101, 20)])
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


# --- Text -------------------------------------------------------------------------------------------------------------


def markdown(result):
    """The report as Markdown, beside the figures of `save_figures`."""
    preference, agreement, ratings = result["preference"], result["agreement"], result["ratings"]
    lines = [
        f"# {result['title']}",
        "",
        "**Research only, not for diagnosis.**",
        "",
        f"Study `{result['study']}`: {count(result['readers'], 'reader')}, {count(result['cases'], 'case')} of "
        f"{count(result['patients'], 'patient')}, {count(result['answers'], 'answered pair')}, and "
        f"{result['repeated_answers']} that repeat one. {_time(result['seconds'])}",
        "",
        *(f"- {note}" for note in [*result["notes"], *cautions(result)]),
        "",
        "## Preference",
        "",
        "![Preference](preference.png)",
        "",
        "| restored image preferred | share | 95%, readers and cases | 95%, cases | 95%, readers | 95%, Wilson |",
        "|---|---|---|---|---|---|",
        _preference_row("all", preference["restored"]),
        *(_preference_row(_label(name), measure) for name, measure in preference["by_class"].items()),
        f"| the paper | {PUBLISHED['value']:.0%} | not known | not known | not known | not known |",
        "",
        f"The paper: {PUBLISHED['source']}. Other images, other readers: a figure beside it, not a test against it.",
    ]
    if preference["no_preference"]:
        lines += ["", f'{preference["no_preference"]} answers were "no preference"; the shares are of the others.']
    lines += [
        "",
        "Wilson's interval takes all answers as independent; the others draw whole readers, patients, or both again.",
        "",
        "## Agreement and reliability",
        "",
        "| | value | 95% |",
        "|---|---|---|",
        f"| Fleiss' kappa of the preference, {agreement['readers']} readers, {count(agreement['cases'], 'case')} "
        f"| {_number(agreement['kappa'])} | {_interval(agreement['low'], agreement['high'])} |",
        f"| pairs of readers that agree | {_percent(agreement['raw'])} | |",
        *_reliability(result),
        "",
        "Without a side bias the mean of the two shares is 50%. Kappa is low where nearly all answers are alike, "
        "however well readers agree.",
        "",
        "## Ratings",
        "",
        "![Ratings](ratings.png)",
        "",
        "| restored minus original, 1 to 5 | mean | 95%, readers and cases | 95%, cases |",
        "|---|---|---|---|",
        _rating_row("all", ratings["difference"]),
        *(_rating_row(_label(name), measure) for name, measure in ratings["difference_by_class"].items()),
        "",
        _wilcoxon(ratings["wilcoxon"]),
        "",
        "## Diagnosis",
        "",
        "![Diagnosis](diagnosis.png)",
        "",
        "| COVID-19, from one image alone | original | restored | restored − original, 95% |",
        "|---|---|---|---|",
        *(_diagnosis_row(name, measure) for name, measure in result["diagnosis"].items()),
        "",
        "## Readers",
        "",
        "| reader | answers | restored preferred | left chosen | same again | rating difference | accuracy | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *map(_reader_row, result["per_reader"]),
        "",
    ]
    return "\n".join(lines)


def cautions(result):
    """Lines that a reader of the result should not miss."""
    lines = []
    if result["readers"] == 1:
        lines.append("One reader: nothing is said about other readers.")
    elif result["readers"] < FEW_READERS:
        lines.append(f"{result['readers']} readers: with so few, intervals over readers tend to be too narrow.")
    mean = result["side_bias"]["mean"]
    if mean:
        low, high, _ = main_interval(mean)
        if low is not None and not low <= 0.5 <= high:
            side = "left" if mean["value"] > 0.5 else "right"
            lines.append(f"Side bias: the {side} image was chosen more often than preference explains.")
    return lines


def _reliability(result):
    bias, consistency = result["side_bias"], result["consistency"]
    for side, measure in bias["left_if_restored"].items():
        yield _share_row(f"left image chosen, restored image on the {side}", measure)
    if bias["mean"]:
        yield _share_row("mean of the two (side bias)", bias["mean"])
    yield _share_row("repeats: same image preferred", consistency["preference"])
    yield _share_row("repeats: same diagnosis", consistency["diagnosis"])
    yield _share_row("repeats: rating within 1", consistency["rating_within_1"])


def _share_row(name, measure):
    if not measure:
        return f"| {name} | | |"
    number = f" ({measure['successes']} of {measure['n']})" if "n" in measure else ""
    return f"| {name} | {measure['value']:.0%}{number} | {_interval(*main_interval(measure)[:2], percent=True)} |"


def _preference_row(name, measure):
    if not measure:
        return f"| {name} | no answers | | | | |"
    cells = [_interval(*measure["bootstrap"][scheme], percent=True) for scheme in _SCHEME_WORDS]
    cells.append(_interval(*measure["wilson"], percent=True))
    return f"| {name} | {measure['value']:.0%} ({measure['successes']} of {measure['n']}) | {' | '.join(cells)} |"


def _rating_row(name, measure):
    if not measure:
        return f"| {name} | | | |"
    cells = [_interval(*measure["bootstrap"][scheme]) for scheme in ("readers_and_cases", "cases")]
    return f"| {name} | {measure['value']:+.2f} | {' | '.join(cells)} |"


def _diagnosis_row(name, measure):
    cells = []
    for image in IMAGES:
        found = measure[image]
        cells.append(
            f"{found['value']:.0%} {_interval(*main_interval(found)[:2], percent=True)}" if found else "no answers"
        )
    difference = measure["difference"]
    if difference:
        cells.append(f"{100 * difference['value']:+.0f} points {_points(*main_interval(difference)[:2])}")
    else:
        cells.append("")
    return f"| {name} | {' | '.join(cells)} |"


def _reader_row(reader):
    cells = [_share_text(reader[name]) for name in ("preference", "left", "consistency")]
    change = reader["rating_difference"]
    cells.append("" if change is None else f"{change:+.2f}")
    cells.append(_share_text(reader["accuracy"]))
    cells.append("" if reader["seconds"] is None else f"{reader['seconds']:.0f}")
    return f"| {reader['reader']} | {reader['answers']} | {' | '.join(cells)} |"


def _share_text(share):
    return f"{share['value']:.0%} ({share['successes']} of {share['n']})" if share else ""


def _wilcoxon(test):
    if test["p_value"] is None:
        return "Wilcoxon's signed-rank test: no patient's mean rating differs."
    p_value = "p < 0.001" if test["p_value"] < 0.001 else f"p = {test['p_value']:.3f}"
    zeros = f"; {test['zeros']} without a difference are left out" if test["zeros"] else ""
    return f"Wilcoxon's signed-rank test of the patients' mean differences: {p_value} (n = {test['n']}{zeros})."


def _label(name):
    return {"covid": "COVID-19"}.get(name, name)


def count(number, noun):
    """A number with its noun: 1 reader, 2 readers."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _time(seconds):
    return "" if seconds is None else f"Median time a pair: {seconds:.0f} s."


def _number(value):
    return "" if value is None else f"{value:.2f}"


def _percent(value):
    return "" if value is None else f"{value:.0%}"


def _interval(low, high, percent=False):
    if low is None:
        return ""
    return f"[{low:.0%}, {high:.0%}]" if percent else f"[{low:.2f}, {high:.2f}]"


def _points(low, high):
    return "" if low is None else f"[{100 * low:+.0f}, {100 * high:+.0f}]"

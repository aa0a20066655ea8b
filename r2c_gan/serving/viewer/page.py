"""The page: its parts in HTML, and the Gradio application that serves them.

Gradio's own image slider can be moved neither by keyboard nor has it alternative texts, and it keeps a phone from
scrolling; so the comparison is a range input over two images.
"""

import html
import secrets
import shutil
import time
from pathlib import Path

from r2c_gan import files
from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError
from r2c_gan.serving.viewer import case

HERE = Path(__file__).parent
NAMES = {"control": "control", "covid": "COVID-19"}
EXAMPLES = {"noise": "Phantom: noise, veil", "blur": "Phantom: motion blur", "opacities": "Phantom: opacities"}
MAX_PASSES = 5
KEPT_SECONDS = 4 * 3600  # an upload and its result are deleted after this, or at exit

_EMPTY = (
    '<div class="result"><figure><div class="stage">No image yet: drop a radiograph, or take a phantom.</div>'
    "</figure></div>"
)


def result_html(opened, seconds, passes):
    """All that is said and shown of a `Case`."""
    difference = case.change(opened)
    scale, words = case.scale_of(difference), case.in_words(difference)
    height, width = opened.poor.shape[:2]
    ratio = width / height
    poor, restored = (case.data_uri(case.png(case.display(image))) for image in (opened.poor, opened.result.image))
    changed = case.data_uri(case.difference_map(difference, scale))
    stage = f"width: {min(1, ratio):.2%}; aspect-ratio: {width} / {height}"
    warning = ""
    if opened.warning:
        warning = f'<p class="changed" role="alert">⚠ Do not trust this result: {html.escape(opened.warning)}.</p>'
    return f"""{warning}
<div class="result">
<figure class="compare" style="--edge: 50%"><figcaption>Poor | restored</figcaption>
<div class="stage"><div class="pair" style="{stage}">
<img class="restored" src="{restored}" alt="The restored image">
<img class="poor over" src="{poor}" alt="The image as given">
<div class="edge"></div><span class="tag left">poor</span><span class="tag right">restored</span></div></div>
<label>Poor on the left of the edge, restored on its right
<input type="range" min="0" max="100" value="50" step="1"></label></figure>
<figure class="difference"><figcaption>Difference: restored − poor</figcaption>
<div class="stage"><img src="{changed}" style="{stage}" alt="Map of the difference. {words}"></div>
<div class="scale" style="background: {case.gradient()}"></div>
<div class="ends"><span>−{scale}% darker</span><span>0</span><span>+{scale}% lighter</span></div>
<p class="words">{words}</p></figure></div>
{probabilities_html(opened.result)}
<p class="words" role="status">{width} x {height} pixels, {opened.bits} bit; {passes} pass{"es" * (passes > 1)},
{seconds:.1f} s. Shown at most {case.DISPLAY_SIDE} pixels a side; the download has the full size.</p>"""


def probabilities_html(result):
    """The head's probabilities before and after as a table, and a warning if the label changed."""
    rows = "".join(
        f'<tr><th scope="row">{NAMES[name]}</th><td class="before">{before:.3f}</td>'
        f'<td class="after">{after:.3f}</td></tr>'
        for name, before, after in zip(CLASSES, result.before, result.after, strict=True)
    )
    warning = ""
    if result.label_changed:
        before, after = (NAMES[CLASSES[int(values.argmax())]] for values in (result.before, result.after))
        warning = f'<p class="changed" role="alert">⚠ The label changes by restoring: {before} → {after}.</p>'
    return (
        '<div class="table"><table><caption>Probabilities by the classifier head</caption><thead><tr>'
        '<th scope="col">class</th><th scope="col">before: image as given</th>'
        '<th scope="col">after: restored image</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>{warning}"
    )


def error_html(message):
    """A message in place of a result."""
    return f'<div class="wrong" role="alert">Not restored. {html.escape(message)}</div>'


def model_html(path, restorer):
    """Which model it is: name, epoch, checksum, size, and its training data where they are recorded."""
    source = restorer.source
    facts = {
        "Model": source.get("run") or Path(path).resolve().name,
        "Epoch": source.get("epoch"),
        "SHA-256 of the weights": source.get("sha256"),
        "Works at": f"{restorer.size[1]} x {restorer.size[0]} pixels, {restorer.channels} channel(s)",
        "Network": restorer.config.get("method"),
        "Training data": training_data(path),
    }
    rows = "".join(
        f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items() if value is not None
    )
    return f'<dl class="model">{rows}</dl>'


def training_data(path):
    """One line on what a run was trained on; None where it is not recorded, as in a SavedModel."""
    config, result = Path(path) / "config.json", Path(path) / "result.json"
    if not config.is_file():
        return None
    folder = files.read_json(config).get("training", {}).get("datasets_dir")
    if not folder:
        return None
    counts = files.read_json(result).get("images", {}) if result.is_file() else {}
    numbers = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"folder {Path(folder).name}" + (f": {numbers} images" if numbers else "")


def build(restorer, path, work, max_megapixels, max_upload_mb, force=False):
    """The Gradio application.

    Args:
        restorer: a `Restorer`.
        path: what it was loaded from.
        work: an empty folder for the downloads, each in a folder that nobody can guess: Gradio serves what lies there
            to whoever knows its name.
        max_megapixels: limit of an upload, in millions of pixels.
        max_upload_mb: limit of an upload, in megabytes; said on the page.
        force: whether DICOM files are taken whatever their header says that they show.

    Returns:
        A `gradio.Blocks`, not launched.
    """
    import gradio as gr

    def restore(upload, passes, before):
        off = gr.DownloadButton(value=None, interactive=False)
        forget(before)
        if not upload:
            return _EMPTY, off, None
        started = time.monotonic()
        try:
            opened = case.open_case(restorer, upload, int(passes), max_megapixels, force)
        except UserError as error:
            return error_html(str(error)), off, None
        shown = result_html(opened, time.monotonic() - started, int(passes))
        folder = secrets.token_urlsafe(32)
        download = Path(work, folder, f"{Path(upload).stem}_restored.png")
        download.parent.mkdir(mode=0o700)
        download.write_bytes(case.png(opened.result.image, opened.bits))
        return shown, gr.DownloadButton(value=str(download), interactive=True), folder

    def forget(folder):
        """Deletes a download that its page no longer shows."""
        if folder is not None:
            shutil.rmtree(Path(work, folder), ignore_errors=True)

    with gr.Blocks(title="R2C-GAN viewer", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.HTML(
            '<div class="head"><h1>R2C-GAN viewer</h1><div class="research" role="note">Research only, not for '
            "diagnosis. <span>A restored image can show findings that are not there, or hide some that are.</span>"
            "</div></div>"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                upload = gr.File(label="Radiograph", height=150)
                gr.HTML(f'<p class="words">PNG, JPEG, TIFF or DICOM, at most {max_upload_mb} MB.</p>')
                passes = gr.Radio(
                    [str(n) for n in range(1, MAX_PASSES + 1)],
                    value="1",
                    label="Passes",
                    elem_id="passes",
                    info="Each restores what the one before gave.",
                )
                gr.HTML('<p class="words">Examples: synthetic drawings, not patients.</p>')
                with gr.Row(elem_classes="phantoms"):
                    for name, label in EXAMPLES.items():
                        example = str(HERE / "examples" / f"{name}.png")
                        button = gr.Button(label, icon=example, elem_classes="phantom", min_width=60)
                        button.click(lambda file=example: file, None, upload, api_visibility="private")
                download = gr.DownloadButton("Download the restored PNG", interactive=False, elem_id="download")
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(_EMPTY, js_on_load=(HERE / "compare.js").read_text(encoding="utf-8"), elem_id="result")
        gr.HTML(model_html(path, restorer))
        mine = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=forget)  # of this page alone
        gr.on(
            [upload.change, passes.input],
            restore,
            [upload, passes, mine],
            [shown, download, mine],
            concurrency_limit=1,
            trigger_mode="always_last",
            api_visibility="private",
        )
    return page.queue(max_size=32)

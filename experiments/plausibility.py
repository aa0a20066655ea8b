"""How often plausibility.npz warns: of held-out films, as they are and degraded, and of what is no chest radiograph.

  python -m experiments.plausibility --model runs/paper --datasets_dir dataset --output_dir results/plausibility
  python -m experiments.plausibility --model pretrained --datasets_dir dataset --more films ...

Films are those of valA/, valB/, testA/, testB/ and the reference images. What is no film is made of them (turned,
negative, cropped, of two values, in a screenshot), drawn (noise, blanks, masks), or comes with scikit-image and
pydicom, where these are installed.
"""

import collections
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import degradations
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images, plausibility
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

SIDE = 256


def main():
    fitted = plausibility.Plausibility.load(FLAGS.model)
    if fitted is None:
        raise UserError(f"--model={FLAGS.model}: holds no {plausibility.FILE}")
    rows = []
    for expected, name, group in tqdm(list(kinds()), "kinds"):
        judged = [plausibility.judge(fitted, image[..., None] * 2 - 1) for image in group]
        scores = [score for score, _ in judged]
        rows.append(
            {
                "of": expected,
                "kind": name,
                "images": len(judged),
                "warned": sum(warning is not None for _, warning in judged),
                "share": f"{np.mean([warning is not None for _, warning in judged]):.3f}",
                "median": f"{np.median(scores):.2f}",
                "lowest": f"{min(scores):.2f}",
                "highest": f"{max(scores):.2f}",
            }
        )
        print(*rows[-1].values(), sep="\t")
    files.write_csv(Path(FLAGS.output_dir) / "plausibility.csv", rows, list(rows[0]))


def kinds():
    """Yields (film or other, name, list of float32 [H, W] in [0, 1])."""
    folder = Path(FLAGS.datasets_dir)
    clean, poor = (
        [read(file) for name in names if (folder / name).is_dir() for file in listed(folder / name)]
        for names in (("valB", "testB", "valA_reference", "testA_reference"), ("valA", "testA"))
    )
    yield "film", "held out, clean", clean
    yield "film", "held out, mirrored", [image[:, ::-1] for image in clean]
    if poor:
        yield "film", "held out, domain A", poor
    for severity in degradations.SEVERITIES:
        rngs = [np.random.default_rng([7, index]) for index in range(len(clean))]
        pairs = zip(clean, rngs, strict=True)
        yield "film", f"held out, {severity}", [degradations.degrade(image, rng, severity)[0] for image, rng in pairs]
    for more in FLAGS.more:
        yield "film", Path(more).name, [read(file) for file in listed(Path(more))]
    yield from others(clean)
    yield from packaged()


def others(clean):
    """What is no upright chest radiograph, made of such, or drawn."""
    half = SIDE // 2
    for name, change in {
        "turned by 90 degrees": lambda image: np.rot90(image),
        "turned by 180 degrees": lambda image: np.rot90(image, 2),
        "negative": lambda image: 1 - image,
        "crop, a quarter": lambda image: square(image)[:half, :half],
        "crop, the middle": lambda image: square(image)[half // 2 : -half // 2, half // 2 : -half // 2],
        "crop, the lower middle": lambda image: square(image)[half:, half // 2 : -half // 2],
        "two values": lambda image: (image > np.median(image)).astype(np.float32),
        "screenshot, bright": lambda image: screenshot(image, 0.95, 0),
        "screenshot, dark": lambda image: screenshot(image, 0.05, 0.9),
    }.items():
        yield "other", name, [np.ascontiguousarray(change(image)) for image in clean]
    rng = np.random.default_rng(8)
    yield "other", "white noise", [rng.random((SIDE, SIDE), np.float32) for _ in range(50)]
    yield "other", "coloured noise", [coloured_noise(rng) for _ in range(50)]
    yield "other", "blank", [np.full((SIDE, SIDE), value, np.float32) for value in (0, 0.5, 1)]
    yield "other", "lung masks", [lung_mask(rng) for _ in range(50)]
    ramp = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))
    yield "other", "ramps", [ramp, ramp.T, ramp[:, ::-1], np.minimum(ramp, ramp.T)]


def packaged():
    """Pictures that come with scikit-image and pydicom."""
    try:
        import skimage.data
    except ImportError:
        return
    pictures = [file for file in listed(Path(skimage.data.__file__).parent) if "multipage" not in file.name]
    yield "other", "scikit-image's pictures", [read(file) for file in pictures]
    try:
        import pydicom.data
    except ImportError:
        return
    found = collections.defaultdict(list)
    for file in listed(Path(pydicom.data.__file__).parent / "test_files"):
        try:
            image = read(file)
        except Exception:  # some are broken on purpose
            continue
        found[str(pydicom.dcmread(file, force=True, stop_before_pixels=True).get("Modality") or "none")].append(image)
    for modality, group in sorted(found.items()):
        yield "other", f"pydicom's, Modality {modality}", group


def listed(folder):
    return images.list_images(folder, recursive=True, unnamed_dicom=True)


def read(file):
    image = images.read_image(file, 1, "auto")
    height, width = image.shape[:2]
    scale = min(1, 2 * SIDE / min(height, width))
    return (images.resize(image, round(height * scale), round(width * scale))[..., 0] + 1) / 2


def square(image):
    return images.resize(image[..., None], SIDE, SIDE)[..., 0]


def screenshot(image, paper, ink):
    page, letters = np.full((SIDE, SIDE), paper, np.float32), np.zeros((SIDE, SIDE), np.uint8)
    for line in range(12, 60, 11):
        cv2.putText(letters, "Yesterday 12:30, see this", (8, line), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 255, 1)
    page[letters > 100] = ink
    page[72:200, 64:192] = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
    return page


def coloured_noise(rng):
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) + 1e-3
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(SIDE, SIDE))) / frequency**1.5)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def lung_mask(rng):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for column in (85, 170):
        axes = (int(rng.integers(30, 42)), int(rng.integers(65, 85)))
        cv2.ellipse(mask, (column + int(rng.integers(-8, 8)), 125), axes, int(rng.integers(-8, 8)), 0, 360, 255, -1)
    return mask.astype(np.float32) / 255


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("model", None, "A folder that holds plausibility.npz.")
    flags.DEFINE_string("datasets_dir", None, "The datasets folder; its validation and test films were not fitted.")
    flags.DEFINE_multi_string("more", [], "A further folder of films, DICOM or others; may be repeated.")
    flags.DEFINE_string("output_dir", None, "Folder for plausibility.csv.")
    flags.mark_flags_as_required(["model", "datasets_dir", "output_dir"])
    program.run(main, __doc__)


if __name__ == "__main__":
    console()

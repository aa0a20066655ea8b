"""Installation of the package; the settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "r2c_gan/__init__.py").read_text(encoding="utf-8")).group(1)
REQUIREMENTS = [
    line for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
]
PROGRAMS = ("train", "evaluate", "restore", "export", "serve", "view", "import_checkpoint")

setup(
    name="r2c-gan",
    version=VERSION,
    description="Blind restoration of chest X-rays by a network that diagnoses while it restores, in Keras",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["r2c_gan", "r2c_gan.*", "data_prep", "data_prep.*"]),
    install_requires=REQUIREMENTS,
    extras_require={
        "cuda": ["tensorflow[and-cuda]==2.21.*"],
        "dicom": ["pydicom>=3,<4", "pylibjpeg>=2", "pylibjpeg-libjpeg>=2", "pylibjpeg-openjpeg>=2"],
        "serve": ["starlette>=1.10,<2", "uvicorn>=0.54,<1", "orjson>=3.13,<4"],
        "onnx": ["tf2onnx>=1.17,<2", "onnx>=1.23,<2", "onnxruntime>=1.32,<2"],
        "view": ["gradio>=6.31,<7"],
        "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.*",
            "import-linter>=2.5",
            "scikit-image>=0.25",
            "playwright>=1.50",
        ],
    },
    entry_points={
        "console_scripts": [f"r2c-gan-{name.replace('_', '-')} = r2c_gan.cli.{name}:console" for name in PROGRAMS]
    },
    package_data={
        "data_prep": ["*.json"],
        "r2c_gan": [
            "models/pretrained_weights/*",
            "training/presets/*.toml",
            "serving/viewer/*.css",
            "serving/viewer/*.js",
            "serving/viewer/examples/*.png",
            "serving/viewer/examples/*.md",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)

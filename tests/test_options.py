"""Options: one declaration gives the flag, its help, its check and the network's argument; presets; old runs."""

import dataclasses
import json

import pytest
from absl import flags
from test_cli import no_programs_flags

from r2c_gan import options
from r2c_gan.cli import option_flags
from r2c_gan.errors import UserError
from r2c_gan.training import presets
from r2c_gan.training.configuration import NetworkOptions, TrainingConfig


@dataclasses.dataclass(frozen=True)
class Extra:
    """Extra."""

    margin: int = options.option(7, "Pixels at each side.", least=0, most=9, in_paper=False)
    shade: str = options.option("dark", "How it looks.", choices=("dark", "light"))


@dataclasses.dataclass(frozen=True)
class Enlarged(Extra, TrainingConfig):
    """A training with two options more."""


def test_a_field_is_a_flag_with_help_and_a_check():
    with no_programs_flags():
        option_flags.define(Enlarged, "r2c_gan.test")
        flags.FLAGS(["program", "--margin=8", "--lr=0.5"])
        assert option_flags.given(Enlarged) == {"margin": 8, "lr": 0.5}
        text = flags.FLAGS.get_help()
        assert "--margin: Not in the paper. Pixels at each side." in text and "--shade: <dark|light>: How it" in text
        with pytest.raises(flags.IllegalFlagValueError):
            flags.FLAGS(["program", "--shade=gray"])
    for change, message in (
        ({"margin": 10}, "--margin=10: must be at most 9"),
        ({"shade": "gray"}, "--shade=gray: must be one of dark, light"),
        ({"margin": 1.5}, "--margin=1.5: must be a whole number"),
        ({"lr": float("inf")}, "--lr=inf: must be a finite number"),
        ({"seed": 2**32}, "--seed=4294967296: must be at most 1073741823"),
    ):
        with pytest.raises(UserError) as error:
            options.check(Enlarged(**change))
        assert str(error.value) == message


def test_each_option_is_declared_once_and_shown_once():
    shown = [field.name for members in option_flags.groups(TrainingConfig).values() for field in members]
    assert sorted(shown) == sorted({field.name for field in options.fields(TrainingConfig)})
    assert next(iter(option_flags.groups(TrainingConfig))) == "Common flags"


def test_the_network_takes_the_options_of_the_training():
    config = TrainingConfig("data", "run", q=5, power_init="maclaurin", filters=4)
    assert config.network == NetworkOptions(q=5, power_init="maclaurin", filters=4)
    assert NetworkOptions.of("convolutional", 1, 1, 8) == NetworkOptions(
        method="convolutional", q=1, channels=1, filters=8
    )


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_is_a_valid_training_and_a_flag_beside_it_wins(name):
    description, given = presets.read(name)
    assert description.endswith(".") and set(given) <= {field.name for field in options.fields(TrainingConfig)}
    config = TrainingConfig.from_preset(name, datasets_dir="data", lr=0.125)
    config.check()
    assert config.lr == 0.125
    assert dataclasses.asdict(config)["preset"] == name


def test_the_paper_is_the_default_and_changes_nothing():
    assert presets.names()[0] == "paper"
    assert TrainingConfig.from_preset("paper") == TrainingConfig()
    with pytest.raises(UserError, match="--preset=fast: must be one of paper, compact"):
        presets.read("fast")


def test_flags_that_are_written_down_give_the_same_training(tmp_path):
    """The record names the preset and every value, so it stays true when a preset changes."""
    with no_programs_flags():
        option_flags.define(TrainingConfig, "r2c_gan.test")
        flags.FLAGS(["program", "--q=2"])
        config = TrainingConfig.from_preset("compact", **option_flags.given(TrainingConfig))
        option_flags.record(config)
        names = [field.name for field in options.fields(TrainingConfig)]
        lines = [flags.FLAGS[name].serialize() for name in names]
        (tmp_path / "flags.txt").write_text("".join(f"{line}\n" for line in lines if line))
        for name in names:
            flags.FLAGS[name].unparse()
        flags.FLAGS(["program", f"--flagfile={tmp_path / 'flags.txt'}"])
        again = TrainingConfig.from_preset("compact", **option_flags.given(TrainingConfig))
        assert again == config == TrainingConfig.from_preset("compact", q=2)


@pytest.mark.parametrize(("was", "now"), [("ranged_tone_curve", "tone_curve"), ("tone_curve", "global_tone_curve")])
def test_runs_of_format_1_keep_the_tone_curve_that_they_were_trained_with(tmp_path, was, now):
    from r2c_gan.models.checkpoints import read_config

    config = {"format": 1, "model": {"skip": was}, "training": {"skip": was, "lr": 1.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path)["model"]["skip"] == read_config(tmp_path)["training"]["skip"] == now
    with pytest.raises(UserError, match="--skip=global_tone_curve: must be one of none, tone_curve"):
        TrainingConfig(skip="global_tone_curve").check()


def test_a_run_of_format_1_restores_as_it_did():
    """`golden/run_format_1` was trained, and `expected.npz` restored, by the version that wrote it."""
    from pathlib import Path

    import numpy as np

    from r2c_gan.restoration.restorer import Restorer

    run = Path(__file__).parent / "golden" / "run_format_1"
    image = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 1)).astype("float32")
    expected = np.load(run / "expected.npz")
    from r2c_gan.models import checkpoints

    model, _ = checkpoints.load_model(run, "latest")
    restored, probabilities = model.restorer(image)
    np.testing.assert_allclose(restored, expected["image"], atol=1e-6)
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-6)
    assert Restorer.load(run, "latest").size == (16, 16)

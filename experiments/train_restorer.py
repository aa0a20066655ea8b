r"""Trains a restorer alone, on pairs that are found or made, and measures it on the test films.

  python -m experiments.train_restorer --datasets_dir study/data/128-moderate --output_dir runs/fitted \
      --degradation fitted.json

Pairs come from three sources, one or more of them:
`--degradation FILE` degrades the good films of trainB (and of trainA_reference with `--paired`) as
`data_prep.fit_degradation` found them to go bad; the real poor films of trainA then teach the head (`--poor_share`).
`--paired` takes trainA and trainA_reference as they are.
`--known_severities` degrades good films by `data_prep.degradations`, afresh in every epoch: the ceiling of a network,
which no user with films of unknown degradations has.
"""

from pathlib import Path

from absl import flags

from r2c_gan import files, options
from r2c_gan.cli import option_flags, program
from r2c_gan.errors import UserError
from r2c_gan.training.restorer_options import RestorerTraining

FLAGS = flags.FLAGS


def main():
    """Trains and measures as the flags say."""
    program.start_tensorflow()
    import keras

    if keras.backend.backend() == "tensorflow" and FLAGS.threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    from r2c_gan.data import datasets as data
    from r2c_gan.training import pairs, restorer_training

    root = Path(FLAGS.datasets_dir)
    size = FLAGS.size or restorer_training.references_size(data.read_domain(root / "trainB"))
    values = {field.name: FLAGS[field.name].value for field in options.fields(RestorerTraining)}
    config = RestorerTraining(**values | {"size": size})
    options.check(config)
    sequence = pairs.PairSequence(
        sources(root), size, config.channels, config.batch_size, FLAGS.clean_share, config.seed
    )
    validation = _pair(root, "valA")
    program.write_flags(config.output_dir)
    network = restorer_training.train(config, sequence, validation, lambda line: print(line, flush=True))
    result = {"network": {"method": config.method, "q": config.q, "parameters": network.count_params()}, "test": {}}
    for folder in FLAGS.test_dirs or [str(root)]:
        pair = _pair(Path(folder), "testA")
        if pair:
            result["test"][Path(folder).name] = tested(network, *pair)
    files.write_json(Path(config.output_dir) / "test.json", result)
    for name, measures in result["test"].items():
        print(name, measures, flush=True)


def tested(network, domain, references):
    """The figures of test films: as given, restored, restored with the mirror image, and good films restored."""
    from r2c_gan.training import restorer_training

    class Identity:
        input_shape = network.input_shape

        @staticmethod
        def predict_on_batch(batch):
            import numpy as np

            return batch, np.full((len(batch), 2), 0.5)

    found = {"n": len(domain)}
    for name, net, films, mirrored in (
        ("given", Identity, domain, False),
        ("restored", network, domain, False),
        ("restored_mirrored", network, domain, True),
    ):
        found[name] = restorer_training.measure(net, films, references, mirrored)
    good = restorer_training.per_film(network, references, references)["psnr"]
    found["good_film_restored_psnr"] = float(good[good < 100].mean())
    return found


def sources(root):
    """The `pairs.Source`s that the flags ask for.

    Raises:
        UserError: if there are none, or a folder is missing.
    """
    from r2c_gan.data import datasets as data
    from r2c_gan.training import pairs

    poor, good = data.read_domain(root / "trainA"), data.read_domain(root / "trainB")
    references = None
    if FLAGS.paired or FLAGS.known_severities:
        references = data.reference_images(poor, root / "trainA_reference")
    found = []
    if FLAGS.degradation:
        from data_prep import fitted_degradation

        model = fitted_degradation.Degradation.load(FLAGS.degradation)
        found.append(pairs.Source(good, degrade=model))
        if FLAGS.paired:
            found.append(pairs.Source(references, degrade=model))
        elif FLAGS.poor_share:
            found.append(pairs.Source(poor, weight=FLAGS.poor_share))
    if FLAGS.paired:
        found.append(pairs.Source(poor, references))
    if FLAGS.known_severities:
        known = known_degradation(FLAGS.known_severities)
        found += [pairs.Source(good, degrade=known), pairs.Source(references, degrade=known)]
    if not found:
        raise UserError("--degradation, --paired, --known_severities: give at least one, or there are no pairs")
    return found


def known_degradation(severities):
    """A function (image, rng) -> image that degrades by `data_prep.degradations`, at a severity drawn from a list."""
    from data_prep import degradations

    def degrade(image, rng):
        return degradations.degrade(image, rng, severities[rng.integers(len(severities))])[0]

    return degrade


def _pair(root, name):
    from r2c_gan.data import datasets as data

    if not (root / f"{name}_reference").is_dir():
        return None
    domain = data.read_domain(root / name)
    return domain, data.reference_images(domain, root / f"{name}_reference")


def console():
    """Defines the flags and runs the program."""
    flags.DEFINE_string("datasets_dir", None, "Folder with trainA/, trainB/, valA/, testA/.", required=True)
    flags.DEFINE_string("degradation", None, "A file of data_prep.fit_degradation.")
    flags.DEFINE_boolean("paired", False, "Take the pairs of trainA/ and trainA_reference/.")
    flags.DEFINE_list("known_severities", [], "Degrade good films by data_prep.degradations, at these severities.")
    flags.DEFINE_float("poor_share", 1.0, "Share of the real poor films that teach the head.", 0)
    flags.DEFINE_float("clean_share", 0.1, "Share of the films to be degraded that are left as they are.", 0, 1)
    flags.DEFINE_list("test_dirs", [], "Datasets folders whose testA/ is measured; --datasets_dir by default.")
    flags.DEFINE_integer("threads", 0, "Threads of an operation; 0 for all.", 0)
    option_flags.define(RestorerTraining, "experiments.train_restorer")
    for field in options.fields(RestorerTraining):
        flags.FLAGS.set_default(field.name, field.default)
    flags.FLAGS.set_default("size", 0)
    program.run(main, __doc__)


if __name__ == "__main__":
    console()

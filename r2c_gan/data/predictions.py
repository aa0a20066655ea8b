"""The rows of `predictions.csv`."""

import numpy as np

from r2c_gan.data.labels import CLASSES


def prediction_row(file, probabilities):
    """One row of `predictions.csv`: file, p_<class> for each class, label."""
    row = {"file": file}
    row.update({f"p_{name}": f"{value:.6f}" for name, value in zip(CLASSES, probabilities, strict=True)})
    row["label"] = CLASSES[int(np.argmax(probabilities))]
    return row

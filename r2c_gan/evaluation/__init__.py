"""Metrics, figures, the evaluation, the model card, activation maps."""

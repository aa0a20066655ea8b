"""Configuration, the trainer, callbacks, the run folder, what each backend does."""

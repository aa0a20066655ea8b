"""Plain classifiers, beside R2C-GAN's own head."""

"""Networks, losses, the joint model, its checkpoints and the weights that come with the package."""

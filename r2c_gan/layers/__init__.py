"""Operational convolutions, padding, tone curves, noise, upsampling."""

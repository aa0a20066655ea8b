"""Pixels, image files, DICOM, datasets and streams."""

"""Programs that make a datasets folder: sources in, labelled unpaired domains with a manifest out."""

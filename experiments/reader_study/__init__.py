"""A blinded comparison of original and restored radiographs by readers: the page they use, and its analysis."""

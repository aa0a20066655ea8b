"""What becomes of the disease when a film is restored."""

"""The Restorer, and restoring files."""

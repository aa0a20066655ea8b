"""Times, memory and FLOPs, measured side by side."""

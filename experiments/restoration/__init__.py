"""What restoring gains, for networks and for classical filters."""

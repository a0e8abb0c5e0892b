"""See `logger`."""

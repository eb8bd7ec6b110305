"""The functional core: what to protect, when, and what to keep. No I/O but in `loading`."""

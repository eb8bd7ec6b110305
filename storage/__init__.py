"""The deduplicating repository."""

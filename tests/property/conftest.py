"""Property tests tell the same on every machine: the same examples each run, and no limit on one example's time."""

from hypothesis import settings

settings.register_profile("backstay", deadline=None, derandomize=True)
settings.load_profile("backstay")

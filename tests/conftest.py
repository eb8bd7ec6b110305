"""Fixtures that every folder of tests may use."""

pytest_plugins = ["tests.lab.fixtures", "tests.stores.fixtures"]

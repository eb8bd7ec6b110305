"""DuckDB without the Python layer that its package puts over it: what the catalog needs of it, in a third of the time.

Imported late. The rest of the package takes 60 ms, all of them under Python's lock, and nothing here uses it.
"""

from __future__ import annotations

try:
    from _duckdb import CatalogException, Error, connect
except ImportError:  # where the engine lies in the package is its own affair
    from duckdb import CatalogException, Error, connect

__all__ = ["CatalogException", "Error", "connect"]

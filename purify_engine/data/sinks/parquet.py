"""Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from purify_engine.data.items import Part
from purify_engine.data.sinks.tables import TableSink
from purify_engine.data.sources.tables import pyarrow


class ParquetSink(TableSink):
    """Each part one file of one group of rows."""

    def fill(self, path: Path, table: Any, part: Part) -> None:
        pyarrow("pyarrow.parquet").write_table(table, path, row_group_size=len(table))

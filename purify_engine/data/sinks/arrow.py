"""Hugging Face's dataset folders, as `load_from_disk` reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from purify_engine.data.items import Part, Written
from purify_engine.data.sinks.tables import TableSink
from purify_engine.data.sources.arrow import INFO, SPLITS, STATE, ArrowSource
from purify_engine.data.sources.tables import pyarrow
from purify_engine.files import write_text

SPOKEN_OF_FILES = ("splits", "download_checksums", "download_size", "dataset_size", "size_in_bytes", "post_processing_size")


class ArrowSink(TableSink):
    """Each part one stream; what names them, state.json, comes last, so that nothing loads a dataset that is not whole."""

    def fill(self, path: Path, table: Any, part: Part) -> None:
        with pyarrow("pyarrow.ipc").new_stream(path, table.schema) as stream:
            stream.write_table(table)

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Iterable[Written]) -> list[Written]:
        """The files that make a dataset of the streams."""
        assert isinstance(self.source, ArrowSource)
        files: dict[str, list[Written]] = {}
        for file in sorted(written):
            files.setdefault(file.file.rpartition("/")[0], []).append(file)
        made = [name for split, streams in files.items() for name in self._describe(split, streams)]
        if made and "" not in self.source.states:
            made.append(self._write(SPLITS, {"splits": [split for split in self.source.states if split in files]}))
        return made

    def _describe(self, split: str, streams: list[Written]) -> list[Written]:
        """What `datasets` reads beside the streams of a split; their old fingerprint would lead to results of the old images."""
        assert isinstance(self.source, ArrowSource)
        below = f"{split}/" if split else ""
        state = dict(self.source.states[split])
        changed = hashlib.sha256(str(state.get("_fingerprint")).encode())
        for file in streams:
            changed.update(file.sha256.encode())
        state["_fingerprint"] = changed.hexdigest()[:16]
        state["_data_files"] = [{"filename": file.file.rpartition("/")[2]} for file in streams]
        info = {name: value for name, value in self.source.infos[split].items() if name not in SPOKEN_OF_FILES}
        return [self._write(f"{below}{INFO}", info), self._write(f"{below}{STATE}", state)]

    def _write(self, name: str, content: Any) -> Written:
        text = json.dumps(content, indent=2) + "\n"
        write_text(self.output / name, text)
        return Written(name, len(text.encode()), hashlib.sha256(text.encode()).hexdigest())

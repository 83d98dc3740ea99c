"""Rows of Parquet files, of which a process keeps the groups it read last: so much of all files together."""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
BYTES_KEPT = 256 << 20
FILES_KEPT = 64
File = tuple[Path, tuple[int, int]]
"""A file as it was: its path, and its size and time."""


class RowGroups:
    """Row groups of all files, the last ones used: `BYTES_KEPT` bytes together, or one that is larger.

    Threads share it: a split is read ahead while another one is validated on.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: so does a process that was forked while this one was reading."""
        self.lock = threading.Lock()
        self.files: OrderedDict[File, tuple[Any, list[int]]] = OrderedDict()
        self.groups: OrderedDict[tuple[File, int], Any] = OrderedDict()
        self.bytes = 0

    def row(self, file: File, number: int) -> dict[str, Any]:
        """Return one row of a file."""
        with self.lock:
            opened, starts = self._opened(file)
            group = bisect_right(starts, number) - 1
            rows = self._group(file, opened, group).slice(number - starts[group], 1)
        return rows.to_pylist()[0]

    def _group(self, file: File, opened: Any, number: int) -> Any:
        if (file, number) not in self.groups:
            self.groups[file, number] = read = opened.read_row_group(number)
            self.bytes += read.nbytes
            while len(self.groups) > 1 and self.bytes > BYTES_KEPT:
                self.bytes -= self.groups.popitem(last=False)[1].nbytes
        self.groups.move_to_end((file, number))
        return self.groups[file, number]

    def _opened(self, file: File) -> tuple[Any, list[int]]:
        """Return an open file, and the number of the first row of each of its groups."""
        if file not in self.files:
            import pyarrow.parquet as pq

            opened = pq.ParquetFile(file[0])
            about = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
            _tell_slow(file[0], sum(group.total_byte_size for group in about), len(about))
            self.files[file] = opened, [0, *accumulate(group.num_rows for group in about)][:-1]
            while len(self.files) > FILES_KEPT:
                self.files.popitem(last=False)[1][0].close()
        self.files.move_to_end(file)
        return self.files[file]


def _tell_slow(file: Path, size: int, groups: int) -> None:
    if size > BYTES_KEPT and groups > 1:
        told = "each row read in random order unpacks a whole row group"
        better = "as JSON Lines (data=json_rows) a row is read alone"
        log.warning("%s: %.0f MB in %d row groups: %s; %s", file, size / 1e6, groups, told, better)


GROUPS = RowGroups()
os.register_at_fork(after_in_child=GROUPS.forget)

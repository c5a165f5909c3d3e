"""Records as lines, JSON, CSV and overlays."""

import csv
import io
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from air.data.images import Picture
from air.evaluation.records import Found, overlay
from air.files import atomic_write, clear_stale
from air.files.console import Console, printable

COLUMNS = ("file", "count", "at_limit", "probability", "boxes")


class StandardOutputError(Exception):
    """Standard output takes no more lines; the cause says why."""


class Output:
    """Writes records as lines, a JSON array, CSV rows or overlays; the files appear once all records are written."""

    def __init__(self, args: Namespace, overlays: Mapping[Path, Path], files: ExitStack) -> None:
        """Open the files.

        Args:
            args: json, csv, overlay and codes of the command line.
            overlays: from `overlay_paths`.
            files: closes them.
        """
        self.codes, self.overlays, self.written = args.codes, overlays, 0
        for path in (args.json, args.csv):
            if path:
                clear_stale(path.resolve().parent)
        self.json: IO[bytes] | None = files.enter_context(atomic_write(args.json)) if args.json else None
        self.csv: IO[bytes] | None = files.enter_context(atomic_write(args.csv)) if args.csv else None
        self.lines = not (args.json or args.csv or args.overlay)
        if self.csv:
            self._row(COLUMNS)
        if args.overlay:
            args.overlay.mkdir(parents=True, exist_ok=True)
            clear_stale(args.overlay)

    def add(self, found: Found) -> None:
        """Write one image's record. Raises StandardOutputError: its line cannot be printed."""
        record = found.record
        content = asdict(record)
        if not self.codes:
            del content["z_what"]
        if self.json:
            self.json.write((",\n" if self.written else "[\n").encode() + json.dumps(content).encode())
        if self.csv:
            self._row([record.file, record.count, str(record.at_limit).lower(), f"{record.probability:.4f}",
                       json.dumps(record.boxes)])
        if self.overlays:
            with atomic_write(self._overlay_path(found.picture)) as file:
                overlay(*found).save(file, "png")
        if self.lines:
            boxes = " ".join("(" + ", ".join(f"{edge:.0f}" for edge in box) + ")" for box in record.boxes)
            count = f"at least {record.count}" if record.at_limit else str(record.count)
            tqdm.write(printable(f"{record.file}: {count} ({100 * record.probability:.1f}%) {boxes}".rstrip()))
            if isinstance(sys.stdout, Console) and sys.stdout.error:
                raise StandardOutputError from sys.stdout.error
        self.written += 1

    def end(self) -> None:
        """Complete the files: no more records follow."""
        if self.json:
            self.json.write(b"\n]\n" if self.written else b"[]\n")

    def _overlay_path(self, picture: Picture) -> Path:
        path = self.overlays[picture.file]
        if picture.name.endswith("]"):  # a page or frame
            path = path.with_stem(f"{path.stem}[{picture.frame + 1}]")
            while path in self.overlays.values():
                path = path.with_stem(f"{path.stem}-2")
        return path

    def _row(self, cells: Sequence[Any]) -> None:
        assert self.csv is not None
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.csv.write(line.getvalue().encode(errors="surrogateescape"))  # a file name's own bytes

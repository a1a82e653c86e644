"""The files of a component under the names, and in the encoding, that the libraries expect.

Variants lose their `.fp16`, texts their byte order mark, and what must not be read is left out. Imports no torch.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from worker.checkpoints import layout, text_files


@contextmanager
def view(folder: Path) -> Iterator[Path]:
    """The folder itself, or a temporary one of links to its files if the libraries would misread it."""
    if _is_plain(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="huafang-") as made:
        write(folder, Path(made), lambda file, place: os.symlink(file.resolve(), place))
        yield Path(made)


def write(folder: Path, target: Path, add: Callable[[Path, Path], Any]) -> None:
    """Put the component's files into `target`: by `add`, or rewritten."""
    for file in layout.component_files(folder):
        place = target / layout.plain_name(file.name)
        if layout.SHARD_INDEX.fullmatch(file.name) and place.name != file.name:
            index = text_files.read_object(file)
            names = {tensor: layout.plain_name(shard) for tensor, shard in index["weight_map"].items()}
            place.write_text(json.dumps({**index, "weight_map": names}), "utf-8")
        elif text_files.has_mark(file):
            place.write_bytes(text_files.as_utf8(file.read_bytes()))
        else:
            add(file, place)


def _is_plain(folder: Path) -> bool:
    read = layout.component_files(folder)
    names = {file.name for file in read}
    others = {file.name for file in folder.iterdir()} - names
    return (
        all(layout.plain_name(name) == name for name in names)
        and not any(map(text_files.has_mark, read))
        and not any(name in layout.NEVER_READ or layout.SHARD_INDEX.fullmatch(name) for name in others)
    )

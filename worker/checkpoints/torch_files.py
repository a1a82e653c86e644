"""Reads the tensors of a file that torch.save wrote, and nothing else of it: no code of the file's can run.

A pickle is a program for a small machine. This one has no instruction that imports, calls or sets anything: a global
is its name, the four calls that make up a dictionary of tensors are understood, and the result of any other is
`LEFT_OUT`. The time is linear in the pickle's size, which is bounded. Knows the zip of today and the stream of before
2020. Imports torch.
"""

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PICKLE_BYTES = 8 * 2**20  # that of a model of 2,000 tensors has 300 kB
NAME_LENGTH, DIMENSIONS, LARGEST = 200, 8, 2**62  # more would let a small pickle take long
OLD_MAGIC = 0x1950A86A20F9469CFC6C
LOCAL_HEADER = 30  # bytes of a zip's before the name
DTYPES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
}


class Unreadable(ValueError):
    """The file is cut short, damaged, or was not written by torch.save."""


@dataclass(frozen=True)
class Name:
    """A global of Python's, which is never looked up."""

    text: str


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class StoredTensor:
    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize


LEFT_OUT = Name("")


@dataclass(frozen=True)
class Saved:
    """What torch.save was given, with StoredTensors for tensors, and the bytes of each storage by its key.

    `has_objects` if anything was left out: another reader would have called it.
    """

    content: Any
    storages: Mapping[str, memoryview]
    has_objects: bool


def read(file: Path) -> Saved:
    """Raises Unreadable."""
    try:
        with file.open("rb") as content:
            mapped = memoryview(mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_COPY))
        return _read_zip(file, mapped) if zipfile.is_zipfile(file) else _read_stream(mapped)
    except (ValueError, IndexError, KeyError, TypeError, OSError, zipfile.BadZipFile, OverflowError) as error:
        raise Unreadable(str(error)) from error


def tensor(saved: Saved, stored: StoredTensor) -> torch.Tensor:
    """Raises Unreadable if it reaches beyond its storage."""
    storage = stored.storage
    data = saved.storages.get(storage.key, memoryview(b""))
    if len(data) < storage.length * storage.dtype.itemsize:
        raise Unreadable(f"the storage {storage.key} is cut short")
    flat = (
        torch.frombuffer(data, dtype=storage.dtype, count=storage.length)
        if storage.length
        else torch.empty(0, dtype=storage.dtype)
    )
    try:
        return flat.as_strided(stored.size, stored.stride, stored.offset)
    except RuntimeError as error:
        raise Unreadable(str(error)) from error


# Files


def _read_zip(file: Path, mapped: memoryview) -> Saved:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        (pickle,) = [member for member in members if member.filename.endswith("/data.pkl")]
        if pickle.file_size > PICKLE_BYTES or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Unreadable("torch.save writes no such zip")
        machine = Machine()
        content = machine.run(io.BytesIO(archive.read(pickle)))
    root = pickle.filename.removesuffix("data.pkl")
    order = next((member for member in members if member.filename == f"{root}byteorder"), None)
    if order is not None and bytes(_member(order, mapped)) != b"little":
        raise Unreadable("its bytes are in another order")
    prefix = f"{root}data/"
    storages = {
        member.filename.removeprefix(prefix): _member(member, mapped)
        for member in members
        if member.filename.startswith(prefix)
    }
    return Saved(content, storages, machine.has_objects)


def _member(member: zipfile.ZipInfo, mapped: memoryview) -> memoryview:
    header = mapped[member.header_offset : member.header_offset + LOCAL_HEADER]
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + LOCAL_HEADER + lengths
    return mapped[start : start + member.file_size]


def _read_stream(mapped: memoryview) -> Saved:
    """Five pickles, and then the storages: the number of elements of each, and its bytes."""
    head, machine = io.BytesIO(mapped[:PICKLE_BYTES]), Machine()
    if (magic := machine.run(head)) != OLD_MAGIC:
        if machine.has_objects:
            return Saved(magic, {}, has_objects=True)
        raise Unreadable("it does not begin as torch.save does")
    _protocol, _origin, content, keys = (machine.run(head) for _ in range(4))
    storages, at = {}, head.tell()
    for key in filter(lambda key: isinstance(key, str), keys):
        size = int.from_bytes(mapped[at : at + 8], "little") * machine.storages[key].dtype.itemsize
        storages[key] = mapped[at + 8 : at + 8 + size]
        at += 8 + size
    return Saved(content, storages, machine.has_objects)


# The machine


MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
IGNORED = ("PROTO", "FRAME", "STOP")
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}


class Machine:
    """Runs pickles; what they have in common is the storages that they name, and whether anything was left out."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.has_objects = False

    def run(self, content: io.BytesIO) -> Any:
        """Run one pickle to its end. Raises Unreadable, ValueError, IndexError, KeyError or TypeError."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in IGNORED:
                continue
            if name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(argument or 0)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop(), self.storages))
            else:
                _build(stack, name, argument)
            self.has_objects = self.has_objects or (len(stack) > 0 and stack[-1] is LEFT_OUT)
        (result,) = stack
        return result


def _build(stack: list[Any], name: str, argument: Any) -> None:
    """The instructions that take values from the stack, or push the value that they carry."""
    match name:
        case "MARK":
            stack.append(MARK)
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            stack.append(CONSTANTS[name])
        case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT":
            stack.append(EMPTY[name]())
        case "GLOBAL":
            stack.append(Name(argument.replace(" ", ".", 1)))
        case "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            is_name = all(isinstance(part, str) and len(part) <= NAME_LENGTH for part in (module, attribute))
            stack.append(Name(f"{module}.{attribute}") if is_name else LEFT_OUT)
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            count = int(name[-1])
            stack[-count:] = [(*stack[-count:],)]
        case "TUPLE":
            stack.append((*_marked(stack),))
        case "LIST":
            stack.append(_marked(stack))
        case "DICT":
            stack.append(_filled({}, _marked(stack)))
        case "APPEND":
            _extend(stack, [stack.pop()])
        case "APPENDS" | "ADDITEMS":
            _extend(stack, _marked(stack))
        case "SETITEM":
            value, key = stack.pop(), stack.pop()
            _filled(stack[-1], [key, value])
        case "SETITEMS":
            items = _marked(stack)
            _filled(stack[-1], items)
        case "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        case "BUILD" | "POP":
            stack.pop()
        case "POP_MARK":
            _marked(stack)
        case "DUP":
            stack.append(stack[-1])
        case "NEWOBJ":
            del stack[-2:]
            stack.append(LEFT_OUT)
        case "NEWOBJ_EX":
            del stack[-3:]
            stack.append(LEFT_OUT)
        case "EMPTY_SET":
            stack.append(LEFT_OUT)
        case "FROZENSET" | "OBJ" | "INST":
            _marked(stack)
            stack.append(LEFT_OUT)
        case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER" | "PERSID":
            raise Unreadable(f"it has the instruction {name}")
        case _:  # numbers, strings and bytes
            stack.append(argument)


def _marked(stack: list[Any]) -> list[Any]:
    """Take all values above the last mark."""
    items: list[Any] = []
    while (value := stack.pop()) is not MARK:
        items.append(value)
    return items[::-1]


def _extend(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(items)


def _filled(target: Any, items: list[Any]) -> Any:
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in _pairs(items))
    return target


def _key(key: Any) -> Any:
    """Raises Unreadable for what another reader of this pickle could take for ever to hash."""
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) > DIMENSIONS or not all(isinstance(part, str | bytes | Name) or _is_small(part) for part in parts):
        raise Unreadable("it has a key that is no text or number")
    return key


def _is_small(value: Any) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST)


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _storage(identity: Any, storages: dict[str, Storage]) -> Any:
    if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
        return LEFT_OUT
    _, kind, key, _, length = identity[:5]
    dtype = DTYPES.get(kind.text) if isinstance(kind, Name) else None
    if dtype is None or not isinstance(key, str) or not _are_counts(length):
        return LEFT_OUT
    return storages.setdefault(key, Storage(key, dtype, length))


def _called(function: Any, arguments: Any) -> Any:
    name = function.text if isinstance(function, Name) else ""
    if name == "collections.OrderedDict" and arguments == ():
        return {}
    if name == "torch._utils._rebuild_parameter" and arguments:
        return arguments[0]
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor") and len(arguments) >= 4:
        storage, offset, size, stride = arguments[:4]
        is_small = len(size) <= DIMENSIONS and len(stride) <= DIMENSIONS
        if isinstance(storage, Storage) and is_small and _are_counts(offset, *size, *stride):
            return StoredTensor(storage, offset, (*size,), (*stride,))
    return LEFT_OUT


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < LARGEST for value in values)

"""Read what torch.save wrote, without unpickling it.

torch.save writes a zip archive: `data.pkl`, a pickle of the containers, and `data/KEY`, the bytes of each storage, all
stored uncompressed and with checksums. A pickle is a program, and a reader that runs it runs what the file says:
allocations of any size at least, code at worst. So here the few instructions that write dictionaries, lists, tuples,
numbers, strings and tensors are interpreted, and any other instruction refuses the file. What is read is never larger
than the file.
"""

import errno
import os
import pickletools
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from air.files import CheckpointError, console

MAX_PICKLE = 2**21  # bytes; that of a run has some 15,000, and 1,500 more for each further process
NAMED = 10  # names in a message
# Of torch's first format, which its versions before 1.6 wrote: the pickle of a magic number.
FIRST_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
STORAGES = {"torch FloatStorage": torch.float32, "torch DoubleStorage": torch.float64,
            "torch HalfStorage": torch.float16, "torch BFloat16Storage": torch.bfloat16,
            "torch LongStorage": torch.int64, "torch IntStorage": torch.int32, "torch ByteStorage": torch.uint8,
            "torch BoolStorage": torch.bool}
NO_ARCHIVE = "it is not an archive that torch.save wrote"
MORE = "it holds more than plain containers and tensors"
OTHER_SIZE = "it holds tensors of another size than it says"


class _Damage(Exception):
    """Why a file is refused, in words that quote nothing of it."""


class _Global(NamedTuple):
    """A class or function that the pickle names."""

    name: str


def load_tensors(path: Path) -> Any:
    """Read plain containers and tensors that torch.save wrote, onto the CPU; code in the file is not run.

    Raises:
        CheckpointError: the file is not there, damaged, or holds something else.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is not a regular file")  # reading a FIFO would wait for ever
        with path.open("rb") as file:
            start = file.read(len(FIRST_FORMAT))
            if start == FIRST_FORMAT:
                raise _Damage("it has the format of torch before 1.6; torch.save(torch.load(FILE, weights_only=True), "
                              "FILE) writes it anew")
            if not start.startswith(b"PK"):
                raise _Damage(NO_ARCHIVE)
            with zipfile.ZipFile(file) as archive:
                return _Reader(archive, os.fstat(file.fileno()).st_size).read()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except _Damage as error:
        reason = str(error)
    except OSError as error:
        damaged = error.errno in (None, errno.EINVAL)  # a table that points before the file's beginning
        reason = "it is damaged" if damaged else f"{error.strerror}"
    except (zipfile.BadZipFile, struct.error, ValueError, TypeError, LookupError, EOFError, RuntimeError):
        reason = "it is damaged"
    raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}")


class _Stack(list[Any]):
    """What the instructions have pushed, with marks between which a list of them lies."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[int] = []  # heights

    def take(self, size: int) -> list[Any]:
        """Pop this many, none from below the last mark."""
        if len(self) - size < (self.marks[-1] if self.marks else 0):
            raise _Damage("it is damaged")
        taken = self[len(self) - size:]
        del self[len(self) - size:]
        return taken

    def take_to_mark(self) -> list[Any]:
        """Pop all that was pushed since the last mark, and the mark."""
        taken = self.take(len(self) - self.marks[-1])
        self.marks.pop()
        return taken


class _Reader:
    """Interprets the pickle of one archive."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        """Check the archive. Args: size: the file's, in bytes."""
        members = archive.infolist()
        pickles = [each for each in members if each.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Damage(NO_ARCHIVE)
        if any(each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size for each in members):
            raise _Damage("its contents are compressed, which torch.save does not do")
        if sum(each.file_size for each in members) > size:
            raise _Damage("it is damaged")
        if archive.testzip() is not None:
            raise _Damage("its contents were altered, as their checksums show")
        if pickles[0].file_size > MAX_PICKLE:
            raise _Damage("it holds more than a checkpoint does")
        self.archive, self.pickle = archive, pickles[0]
        self.folder = self.pickle.filename.removesuffix("data.pkl")
        byteorder = self.folder + "byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder).decode() != sys.byteorder:
            raise _Damage("it was written on a processor of another byte order")
        self.storages: dict[str, Tensor] = {}

    def read(self) -> Any:
        """The object that the pickle describes."""
        stack, memo = _Stack(), dict[int, Any]()
        argument: Any
        for opcode, argument, _ in pickletools.genops(self.archive.read(self.pickle)):
            match opcode.name:
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(stack.take(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3").index(opcode.name))))
                case "TUPLE":
                    stack.append(tuple(stack.take_to_mark()))
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "MARK":
                    stack.marks.append(len(stack))
                case "SETITEM" | "SETITEMS":
                    items = stack.take(2) if opcode.name == "SETITEM" else stack.take_to_mark()
                    _update(stack[-1], items)
                case "APPEND" | "APPENDS":
                    items = stack.take(1) if opcode.name == "APPEND" else stack.take_to_mark()
                    _extend(stack[-1], items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_Global(argument))
                case "BINPERSID":
                    stack.append(self._storage(*stack.take(1)[0]))
                case "REDUCE":
                    stack.append(_call(*stack.take(2)))
                case "BUILD":  # of a state_dict's OrderedDict: versions of modules, which ours do not have
                    stack.take(1)
                case "STOP":
                    return stack.take(1)[0]
                case other if other != "PROTO":
                    raise _Damage(MORE)
        raise _Damage("it is damaged")

    def _storage(self, kind: Any, storage_type: Any, key: Any, location: Any, size: Any) -> Tensor:
        """The elements of a storage, (size,)."""
        if kind != "storage" or not isinstance(storage_type, _Global) or not isinstance(key, str):
            raise _Damage("it is damaged")
        if storage_type.name not in STORAGES:
            raise _Damage("it holds tensors of a type that checkpoints do not have")
        dtype = STORAGES[storage_type.name]
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            # A copy, aligned as torch's own tensors are, so that it is computed with in the same way.
            self.storages[key] = torch.frombuffer(content, dtype=dtype).clone() if content else torch.empty(0).to(dtype)
        storage = self.storages[key]
        if storage.dtype != dtype or type(size) is not int or len(storage) != size:
            raise _Damage(OTHER_SIZE)
        return storage


def _update(target: Any, items: list[Any]) -> None:
    """Put keys and values, one after the other, into a dictionary."""
    keys = items[::2]
    if type(target) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in keys):
        raise _Damage("it is damaged")
    target.update(zip(keys, items[1::2]))


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise _Damage("it is damaged")
    target.extend(items)


def _call(function: Any, arguments: Any) -> Any:
    """The two calls that a checkpoint makes: of OrderedDict, and of the function that makes a tensor."""
    calls: dict[str, Callable[..., Any]] = {"collections OrderedDict": dict, "torch._utils _rebuild_tensor_v2": _view}
    if not isinstance(function, _Global) or function.name not in calls or type(arguments) is not tuple or (
            calls[function.name] is dict and arguments):
        raise _Damage(MORE)
    return calls[function.name](*arguments)


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor within its storage; what follows the stride concerns gradients."""
    if not isinstance(storage, Tensor) or type(shape) is not tuple or type(stride) is not tuple or any(
            type(number) is not int or number < 0 for number in (offset, *shape, *stride)) or len(shape) != len(stride):
        raise _Damage("it is damaged")
    elements = 1
    for side in shape:
        elements *= side
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride))
    if elements > len(storage) or elements and last >= len(storage):
        raise _Damage(OTHER_SIZE)
    return storage.as_strided(shape, stride, offset)


def mismatches(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> list[str]:
    """What distinguishes tensors from those expected, by name and shape; empty if they fit."""
    wrong = [f"missing: {name} {tuple(expected[name])}" for name in expected if name not in found]
    wrong += [f"not expected: {printable(name)} {tuple(found[name].shape)}" for name in found if name not in expected]
    wrong += [f"{name}: expected {tuple(expected[name])}, found {tuple(found[name].shape)}"
              for name in expected if name in found and found[name].shape != expected[name]]
    return wrong if len(wrong) <= NAMED else [*wrong[:NAMED], f"and {len(wrong) - NAMED} more"]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a nan or an infinite number; log-probabilities may be -inf."""
    return [name for name, value in tensors.items()
            if not (value <= 0 if name.endswith("log_probs") else value.isfinite()).all()]


def printable(text: str, most: int = 200) -> str:
    """Text of a file as a message may quote it: control characters escaped, and not too long."""
    return console.printable(text[:most]) + ("..." if len(text) > most else "")

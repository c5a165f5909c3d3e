"""The pickle inside an archive that torch.save wrote, interpreted rather than run."""

import struct
import zipfile

import pytest
import torch

from air.files import CheckpointError
from air.models.archive import MAX_PICKLE, load_tensors


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive anew, with right checksums and the pickle that `change` makes of its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def pickled(*opcodes):
    return b"".join((b"\x80\x02", *opcodes, b"."))


TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
          b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK%cK%c\x85K%c\x85\x89}tR")


def tensor(offset, size, stride):
    """A tensor in a storage of two floats."""
    return pickled(TENSOR.replace(b"%c", b"%c") % (offset, size, stride))


@pytest.mark.parametrize("program, words", [
    (pickled(b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R"), "more than plain containers"),
    (pickled(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R"), "more than plain containers"),
    (pickled(b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R"), "more than plain containers"),
    (pickled(b"ccollections\nOrderedDict\n]\x85R"), "more than plain containers"),
    (pickled(b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20), "more than plain containers"),  # LONG4
    (pickled(b"L" + b"9" * 4000 + b"L\n"), "more than plain containers"),
    (pickled(b"\x96" + struct.pack("<Q", 2**40)), "damaged"),  # BYTEARRAY8
    (pickled(b"X\xff\xff\xff\x7fshort"), "damaged"),
    (pickled(b"Nr\xff\xff\xff\xff"), None),  # LONG_BINPUT: pickle.loads allocates 32 GB
    (pickled(b"N" + b"\x85" * 2**17), None),  # nested deeply
    (pickled(b"}N" + b"\x85" * 2**17 + b"Ns"), "damaged"),  # hashing it would overflow the stack
    (pickled(b"]q\x00h\x00a"), None),  # a list that holds itself
    (pickled(b"N" * (MAX_PICKLE + 1)), "more than a checkpoint does"),
    (pickled(b"("), "damaged"), (pickled(), "damaged"), (pickled(b"h\x07"), "damaged"), (b"", "damaged"),
    (pickled(b"K\x01K\x02s"), "damaged"), (pickled(b"}K\x01a"), "damaged"), (pickled(b"NQ"), "damaged"),
    (tensor(0, 2, 1), None), (tensor(1, 1, 1), None), (tensor(9, 0, 1), None),
    (tensor(1, 2, 1), "another size"), (tensor(0, 2, 9), "another size"), (tensor(0, 200, 0), "another size"),
    (tensor(0, 2, 1).replace(b"K\x02tQ", b"K\x03tQ"), "another size"),  # a storage of three floats
    (tensor(0, 2, 1).replace(b"FloatStorage", b"DoubleStorage"), "another size"),
    (tensor(0, 2, 1).replace(b"FloatStorage", b"ComplexFloatStorage"), "a type that checkpoints do not have"),
    (tensor(0, 2, 1).replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001"), "damaged")])
def test_a_pickle_is_not_run(tmp_path, program, words):
    """Instructions that cost memory, run code, or describe tensors beyond their storage."""
    path = tmp_path / "a.pt"
    torch.save(torch.ones(2), path)
    rewritten(path, lambda _: program)
    if words is None:
        load_tensors(path)
    else:
        with pytest.raises(CheckpointError, match=f"^{path} cannot be read as a checkpoint: it .*{words}"):
            load_tensors(path)

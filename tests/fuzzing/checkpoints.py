"""Checkpoints with altered bytes, with parts that are missing or replaced, and other files in their place."""

import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzzing.base import Base, Verdict, first_lines, resume_arguments, resume_copy
from tests.fuzzing.sandbox import Outcome, Sandbox, faults

OTHERS = [None, True, 0, -1, 7, 2**62, 10**500, 0.5, -1.0, float("nan"), float("inf"), "", "text", "\x1b[31m\n",
          "\udcff", [], [1], [[]], (), {}, {"a": 1}, {1: {}}, torch.zeros(()), torch.zeros(3),
          torch.full((3,), float("nan")), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(0),
          torch.zeros(5056, dtype=torch.uint8), torch.ones(3, dtype=torch.complex64), torch.ones(1).expand(10**6)]
# Pickles that cost memory, overflow the stack or run code.
PROGRAMS = [b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R",
            b"cposix\nsystem\nX\x0a\x00\x00\x00touch harm\x85R",
            b"\x8b\xff\xff\xff\x7f", b"Nr\xff\xff\xff\xff", b"}N" + b"\x85" * 10**6 + b"Ns", b"]" * 10**5,
            b"X\xff\xff\xff\x7fa", b"\x96\xff\xff\xff\xff\xff\x00\x00\x00", b"]q\x00h\x00a", b"(" * 10**5,
            b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n)R", b"\x80\x09"]
REPLACEMENTS = ["text", "empty", "folder", "fifo", "zip", "npz", "pickle", "first format", "deflated", "device",
                "program", "program", "program", "list", "format", "escapes"]


def trial(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """A damaged checkpoint for air.predict or for train.py --resume."""
    path = resume_copy(base, folder) / "checkpoint.pt"
    which = rng.random()
    if which < 0.4:
        what, harmless = _alter_bytes(rng, path), {"predict": False, "resume": False}
    elif which < 0.85:
        what, harmless = _alter_content(rng, path)
    else:
        what, harmless = _replace(rng, path), {"predict": False, "resume": False}
    if rng.random() < 0.5:
        outcome = sandbox.run("predict", ["run", *map(str, base.known), "--json", "found.json"], folder)
        found = faults(outcome, "predict", codes=(0, 2))
        if outcome.code == 0 and not harmless["predict"] and not same_records(
                json.loads((folder / "found.json").read_text()), base.records):
            found.append("accepted nonsense: other counts or boxes than the checkpoint's")
        program = "predict"
    else:
        outcome = sandbox.run("train", resume_arguments(base), folder)
        found = faults(outcome, "train", codes=(0, 1, 2) if harmless["resume"] else (0, 2))
        metrics = folder / "run" / "metrics.json"
        if outcome.code == 0 and not harmless["resume"] and not _same_metrics(metrics, base.resumed):
            found.append("accepted nonsense: another run than the checkpoint's")
        program = "resume"
    if (folder / "harm").exists():
        found.append("code in the checkpoint was run")
    return Verdict(found + _advice(outcome), f"{program}: {what}", first_lines(outcome.err, outcome.out))


def _advice(outcome: Outcome) -> list[str]:
    advice = ("weights_only=False", "unpickl")
    return ["advice to load unsafely"] if any(words in outcome.err for words in advice) else []


def _alter_bytes(rng: np.random.Generator, path: Path) -> str:
    whole = bytearray(path.read_bytes())
    place = int(rng.integers(len(whole)) if rng.random() < 0.7 else len(whole) - rng.integers(1, 4000))
    length = min(int(rng.choice([1, 1, 2, 100, 5000])), len(whole) - place)
    kind = str(rng.choice(["random", "bit", "zeros", "cut", "inserted", "moved"]))
    if kind == "random":
        whole[place:place + length] = rng.bytes(length)
    elif kind == "bit":
        whole[place] ^= 1 << int(rng.integers(8))
    elif kind == "zeros":
        whole[place:place + length] = bytes(length)
    elif kind == "cut":
        del whole[place:]
    elif kind == "inserted":
        whole[place:place] = rng.bytes(length)
    else:
        del whole[place:place + length]
    path.write_bytes(whole)
    return f"{length} bytes {kind} at {place}"


def _alter_content(rng: np.random.Generator, path: Path) -> tuple[str, dict[str, bool]]:
    """Remove or replace a part; what was done, and whether a program may differ from the checkpoint's without fault."""
    content = torch.load(path, weights_only=True)
    places = list(_places(content))
    groups = sorted({place[:2] for place in places}, key=str)  # so that the many weights do not leave out the rest
    group = groups[int(rng.integers(len(groups)))]
    among = [place for place in places if place[:2] == group]
    place = among[int(rng.integers(len(among)))]
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    old, new = holder[place[-1]], None
    if rng.random() < 0.3:
        del holder[place[-1]]
        what = "removed"
    else:
        number = int(rng.integers(len(OTHERS) + 2))
        if number >= len(OTHERS) and isinstance(old, torch.Tensor) and old.dtype == torch.float32:
            new = old * float("nan") if number == len(OTHERS) else torch.cat((old.flatten(), old.flatten()))
        else:
            new = OTHERS[number % len(OTHERS)]
        holder[place[-1]] = new
        what = f"replaced by {type(new).__name__} {str(new)[:30]!r}"
    torch.save(content, path)
    # Settings may be others, and weights of the right shape; for the run also averages, times and moments.
    alike = isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor) and new.shape == old.shape
    predict = place[0] == "config" or alike and bool(new.isfinite().all())
    resume = predict or place[0] in ("seconds", "step", "optimizer", "gradient_norms") or place[2:3] == ("means",)
    return f"{'.'.join(map(str, place))} {what}", {"predict": predict, "resume": resume}


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def _replace(rng: np.random.Generator, path: Path) -> str:
    """Put another file, or something that is no file, in the checkpoint's place."""
    kind = str(rng.choice(REPLACEMENTS))
    content = path.read_bytes()
    path.unlink()
    if kind == "text":
        path.write_text("weights: 3\nlayers: [1, 2]\n")
    elif kind == "escapes":
        path.write_bytes(b"\x1b[31m\x1b]0;title\x07\r\n" * 20)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, images=np.zeros(3))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"format": 8, "model": [1, 2]}))
    elif kind == "first format":
        torch.save({"format": 8}, path, _use_new_zipfile_serialization=False)
    elif kind in ("list", "format"):
        torch.save([1, 2] if kind == "list" else {"format": OTHERS[int(rng.integers(len(OTHERS)))]}, path)
    else:
        path.write_bytes(content)
        program = b"\x80\x02" + PROGRAMS[int(rng.integers(len(PROGRAMS)))] + b"."
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                if "data.pkl" not in name or kind == "deflated":
                    archive.writestr(name, data)
                elif kind == "program":
                    archive.writestr(name, program)
        return f"program {program[:40]!r}" if kind == "program" else kind
    return kind


def same_records(found: list[dict[str, Any]], expected: list[dict[str, Any]], pixels: float = 0.01) -> bool:
    """Whether images have the same counts, and the same boxes to so many pixels."""
    return len(found) == len(expected) and all(
        one["count"] == other["count"] and np.allclose(*(np.reshape(each["boxes"], (-1, 4)) for each in (one, other)),
                                                       rtol=0, atol=pixels) for one, other in zip(found, expected))


def _same_metrics(path: Path, expected: dict[str, Any]) -> bool:
    found = json.loads(path.read_text())
    return all(found[name] == value for name, value in expected.items() if name != "seconds")

"""Command lines of train.py: settings of every kind with valid, boundary and nonsensical values."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

from air.config import default_config, with_settings
from air.models.settings import SettingsError, flag_names
from tests.fuzzing.base import FEW, NETWORKS, SMALL, Base, Verdict, first_lines
from tests.fuzzing.sandbox import Sandbox, faults, not_finite

LONG = "9" * 5000
TEXTS = ["", " ", "x", "1.5", "1e3", "nan", "inf", "-inf", "-1", "0", "0x10", "True", "None", "null", "[1]", "{}", LONG,
         "a" * 5000, "\u0663", "\u200b", "\x1b[31mred", "two\nlines", "\udcff", "1_000", "--", "1,5", "\U0001f600"]
INTEGERS = [0, -1, 1, 2, 3, 5, 8, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30]
FLOATS = [0.0, -0.5, -1.0, 1e-320, 1e-9, 0.01, 0.1, 0.5, 1.0, 2.5, 30.0, 1e30, 1e300, math.nan, math.inf, -math.inf]
# Settings of which a large value is right and takes long.
SLOW = {"optim.steps", "run.compile"}
# Mistakes of other kinds.
MODES = [words.split(" ") for words in (
    "--nonsense", "--nonsense 1", "word", "--dataset nonsense", "--estimator ", "--resume nowhere", "--resume ",
    "--device cuda", "--device tpu", "--precision tf32", "--steps", "--steps 0", "--out ", "--out /proc/nowhere",
    "--out /dev/null", "--out " + "a" * 300, "--out file", "--model.features 3 --data.overlap loose", "--data.counts",
    "--data.file nowhere.npz", "--estimator.draws 1 --estimator enumerate", "--batch-size 1000000",
    "--steps 1 --steps x")]
OUTS = ["out", "two\nlines", "\udcff", "\x1b[31m", "deep/er/out", " ", "-out", "sp ace", "\u00e9\u4e2d"]


class Setting(NamedTuple):
    """A setting that has a flag."""

    path: str
    hint: Any

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.path.replace("_", "-")


def settings_of(config: Any) -> list[Setting]:
    """All settings of a configuration that have a flag."""
    return [Setting(f"{group.name}.{name}", get_type_hints(type(getattr(config, group.name)))[name])
            for group in dataclasses.fields(config) for name in sorted(flag_names(type(getattr(config, group.name))))
            if name != "name"]


def trial(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """A command line with one to four settings drawn, or with a mistake of another kind."""
    dataset = str(rng.choice(["sprites", "sprites", "multi-mnist", "npz", "folder", "scenes-single", "scenes-table"]))
    estimator = str(rng.choice(["nvil", "enumerate", "vimco"] if "scenes" not in dataset else ["nvil", "enumerate"]))
    chosen: dict[str, list[str]] = {}
    refused = False
    config = default_config(dataset, estimator)
    known = settings_of(config)
    for i in rng.choice(len(known), int(rng.integers(1, 5)), replace=False):
        setting = known[int(i)]
        tokens, value = draw_value(rng, setting.hint)
        if setting.path in SLOW or setting.path == "data.root" and dataset == "multi-mnist":
            continue
        chosen[setting.path] = [setting.flag, *tokens] if tokens is not None else [
            setting.flag if value else setting.flag.replace(".", ".no-", 1)]
        refused |= is_wrong(config, setting.path, value)
    mode: Sequence[str] = ()
    if rng.random() < 0.25:
        mode, refused = MODES[int(rng.integers(len(MODES)))], True
    out = str(rng.choice(OUTS)) if rng.random() < 0.3 else "out"
    (folder / "file").write_text("")
    argv = arguments(base, folder, dataset, estimator, chosen) + [token for part in chosen.values() for token in part]
    argv += mode if "--out" in mode else [f"--out={out}", *mode]
    outcome = sandbox.run("train", argv, folder)
    found = faults(outcome, "train", True if refused else None)
    if outcome.code == 0:
        metrics = list(folder.rglob("metrics.json"))
        if len(metrics) != 1 or not_finite(json.loads(metrics[0].read_text())):
            found.append("accepted nonsense: no metrics.json of finite numbers")
    return Verdict(found, f"train.py {' '.join(map(ascii, argv))}", first_lines(outcome.err, outcome.out))


def arguments(base: Base, folder: Path, dataset: str, estimator: str, chosen: dict[str, list[str]]) -> list[str]:
    """A small run, without the flags that the trial sets."""
    argv = ["--dataset", dataset, "--estimator", estimator, "--device", "cpu"]
    given: list[list[str]] = [SMALL[i:i + 2] for i in range(0, len(SMALL) - 2, 2)]
    if "scenes" not in dataset:
        given += [NETWORKS[i:i + 2] for i in range(0, len(NETWORKS), 2)]
    if dataset == "npz":
        np.savez(folder / "own.npz", **{name: array[:40] for name, array in base.arrays.items()})
        given.append(["--data.file", "own.npz"])
    elif dataset == "folder":
        given += [["--data.root", str(base.images)], ["--data.image-size", "24"]]
    else:
        given += [FEW[:2], FEW[2:]]
    if dataset == "multi-mnist":
        argv += ["--data.root", str(base.mnist)]
    taken = {part[0] for part in chosen.values()}
    return argv + ["--steps", "2"] + [token for flag, value in given if flag not in taken
                                      and flag.replace("--batch-size", "--optim.batch-size") not in taken
                                      for token in (flag, value)]


def draw_value(rng: np.random.Generator, hint: Any) -> tuple[list[str] | None, Any]:
    """A setting's value as written on the command line, None for a flag without one; and as Python has it."""
    options = [option for option in _flattened(hint) if option is not type(None)]
    kind = options[int(rng.integers(len(options)))]
    if kind is bool:
        value = bool(rng.random() < 0.5)
        return None, value
    text = str(TEXTS[int(rng.integers(len(TEXTS)))])
    nonsense = rng.random() < 0.2
    if get_origin(kind) is Literal:
        value = text if nonsense else str(rng.choice(get_args(kind)))
        return [value], value
    if kind is str:
        return [text], text
    if get_origin(kind) is tuple:
        values = [_number(rng, get_args(kind)[0], nonsense, text) for _ in range(int(rng.integers(1, 4)))]
        return [written for written, _ in values], tuple(value for _, value in values)
    written, value = _number(rng, kind, nonsense, text)
    return [written], value


def _number(rng: np.random.Generator, kind: type, nonsense: bool, text: str) -> tuple[str, Any]:
    """A number as written, and itself; a text where it is none."""
    if nonsense:
        try:
            return text, kind(text)
        except ValueError:
            return text, text
    pool: Sequence[Any] = INTEGERS if kind is int else FLOATS
    value = pool[int(rng.integers(len(pool)))]
    return repr(value), value


def _flattened(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, UnionType):
        return [option for part in get_args(hint) for option in _flattened(part)]
    return [hint]


def is_wrong(config: Any, path: str, value: Any) -> bool:
    """Whether the settings' own declaration refuses a value, or it is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return True
    try:
        with_settings(config, {path: value})
        return False
    except SettingsError:
        return True

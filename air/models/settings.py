"""Settings as frozen dataclasses: each field declares its type, default, check and help text, once.

    @settings
    class Optim:
        lr: Positive = 1e-3
        \"\"\"Adam's learning rate at the first step.\"\"\"

pydantic checks the values; tyro makes a flag of each field, with the string below it as its help. tyro's `Suppress`
marks a field without a flag: it follows from the data or from another setting. The constructor that takes the settings
as keywords checks them against the same declaration (`checked_by`).
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import cache, wraps
from numbers import Integral
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import tyro
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from torch import nn
from typing_extensions import dataclass_transform
from tyro.conf import Suppress

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

SHOWN = 120  # characters of a value that a message repeats
LONGEST = 4096  # characters of a string, those of a path
MEMBER = re.compile(r"(function-\w+|literal|tuple)\[.*\]")  # what pydantic adds to a path: which member of a union


class SettingsError(ValueError):
    """A setting has a wrong name, type or value; the message is one sentence."""


def _number(value: Any) -> Any:
    """Python's own number for NumPy's and torch's; no string is taken for a number, and no bool."""
    value = _plain(value)
    if isinstance(value, (str, bytes, bool)):
        raise PydanticCustomError("number", "Input should be a number")
    return value


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _sizes(value: Any) -> Any:
    """A number as the only one of a tuple."""
    value = _plain(value)
    return (value,) if isinstance(value, (int, float)) else value


def _ascending_shares(given: tuple[float, ...]) -> tuple[float, ...]:
    if not (1 <= len(given) <= 2 and 0 < given[0] <= given[-1] <= 1):
        raise PydanticCustomError("sizes", "Input should be one share of the image's side, or the lowest and the "
                                           "highest, each above 0 and at most 1")
    return given


def _text(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("text", "Input should be text without NUL characters")
    return value


# The bounds are far beyond what anyone uses; above them numbers overflow before memory runs out.
_LARGE, _SMALL = 1e6, 1e-6  # of what float32 multiplies, divides by and squares
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
Scale = Annotated[float, Field(ge=_SMALL, le=_LARGE, allow_inf_nan=False), BeforeValidator(_number)]
NonNegative = Annotated[float, Field(ge=0, le=_LARGE, allow_inf_nan=False), BeforeValidator(_number)]
Finite = Annotated[float, Field(ge=-_LARGE, le=_LARGE, allow_inf_nan=False), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]
PositiveFraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]
PositiveInt = Annotated[int, Field(gt=0, le=10**9), BeforeValidator(_number)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**9), BeforeValidator(_number)]
HiddenSize = Annotated[PositiveInt, Field(le=10**8)]  # of an LSTM, whose weights grow with its square
Draws = Annotated[PositiveInt, Field(le=10**4)]  # of particles and of counts
Side = Annotated[PositiveInt, Field(le=10**4)]  # of an image or a window, in pixels
Seed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(_number)]
LayerSizes = Annotated[tuple[PositiveInt, ...], BeforeValidator(_plain)]
SomeLayerSizes = Annotated[LayerSizes, Field(min_length=1)]
# Shares of the image's side: of all objects, or the smallest's and the largest's.
ObjectSize = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)], ...],
                       BeforeValidator(_sizes), AfterValidator(_ascending_shares)]
Text = Annotated[str, AfterValidator(_text)]
Count = Annotated[NonNegativeInt, Field(le=1000)]
# Each once, in ascending order: the scenes depend on which counts occur, not on how they were written.
Counts = Annotated[tuple[Count, ...], BeforeValidator(_plain), AfterValidator(lambda given: tuple(sorted(set(given))))]
SomeCounts = Annotated[Counts, Field(min_length=1)]


def middle(size: float | tuple[float, ...]) -> float:
    """The size of a typical object: of `ObjectSize`, or a single share."""
    shares = size if isinstance(size, tuple) else (size,)
    return shares[0] if len(shares) == 1 else math.sqrt(shares[0] * shares[1])


def short(*flags: str) -> Any:
    """Short flags for a setting, in addition to its path."""
    return tyro.conf.arg(aliases=flags)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass whose values are checked.

    Its constructor raises SettingsError where a value fails its check or a name does not exist.
    """
    made = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", str_max_length=LONGEST))(cls)
    construct: Callable[..., None] = made.__init__

    def __init__(self: Any, **values: Any) -> None:
        try:
            construct(self, **values)
        except ValidationError as error:
            raise SettingsError(sentence(error)) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return cast(type[T], made)


def from_dict(kind: Any, values: Mapping[str, Any]) -> Any:
    """Settings of a type (a class or a union of them) from what `to_dict` gave.

    Raises:
        SettingsError: a name does not exist, or a value fails its check.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise SettingsError(sentence(error)) from None


def to_dict(some: Any) -> dict[str, Any]:
    """Settings as JSON values."""
    return TypeAdapter(type(some)).dump_python(some, mode="json")


def flat(some: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by path, such as "optim.lr"."""
    paths: dict[str, Any] = {}
    for field in dataclasses.fields(some):
        value = getattr(some, field.name)
        if dataclasses.is_dataclass(value):
            paths |= flat(value, f"{prefix}{field.name}.")
        else:
            paths[prefix + field.name] = value
    return paths


def flag_names(kind: type) -> set[str]:
    """Names of a class's settings that have a flag: those that are not marked `Suppress`."""
    hints = get_type_hints(kind, include_extras=True)
    (suppressed,) = get_args(Suppress[int])[1:]
    return {field.name for field in dataclasses.fields(kind) if suppressed not in get_args(hints[field.name])[1:]}


def changes(before: Any, after: Any) -> dict[str, Any]:
    """The settings of `after` that differ from those of `before`, by path."""
    old = flat(before)
    return {path: value for path, value in flat(after).items() if value != old[path]}


def checked_by(kind: type) -> Callable[[Function], Function]:
    """Decorate a constructor: keywords that `kind` declares pass the same checks as its settings.

    Modules are taken as they are, and None is taken where it is the keyword's default. The constructor raises
    SettingsError where a value fails its check.
    """
    def decorate(construct: Function) -> Function:
        signature = inspect.signature(construct)

        @wraps(construct)
        def checked(*args: Any, **keywords: Any) -> Any:
            given = signature.bind(*args, **keywords)
            for name, value in given.arguments.items():
                if name not in _checks(kind) or isinstance(value, nn.Module):
                    continue
                if value is None and signature.parameters[name].default is not None:
                    raise SettingsError(f"{name}: input should not be None")
                try:
                    given.arguments[name] = _checks(kind)[name].validate_python(value)
                except ValidationError as error:
                    raise SettingsError(sentence(error, name)) from None
            return construct(*given.args, **given.kwargs)

        return cast(Function, checked)

    return decorate


@cache
def _checks(kind: type) -> dict[str, TypeAdapter[Any]]:
    """The check of each field, by name."""
    return {name: TypeAdapter(hint, config=ConfigDict(str_max_length=LONGEST))
            for name, hint in get_type_hints(kind, include_extras=True).items()}


def power_exceeds(base: int, exponent: int, most: int) -> bool:
    """Whether base ** exponent > most, for a base of at least 2; the power itself may have millions of digits."""
    return exponent > most.bit_length() or base**exponent > most


def check_memory(what: str, needed: float, limit: int, advice: str) -> None:
    """Refuse what needs more memory than there is.

    Args:
        what: needs the memory; the subject of the message, in the plural.
        needed, limit: bytes.
        advice: which settings to lower.
    Raises:
        SettingsError: needed > limit.
    """
    if needed > limit:
        raise SettingsError(f"{what} need about {needed / 1e9:,.1f} GB of memory, and there are {limit / 1e9:,.1f} GB: "
                            f"{advice}")


def check_positive(name: str, number: Any) -> None:
    """Refuse what is no whole number of at least 1.

    Args:
        name: of the argument.
    Raises:
        ValueError: it is none.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(number)}")


def sentence(error: ValidationError, name: str = "") -> str:
    """The first error in one sentence, such as "lr: input should be greater than 0, got -1.0".

    Args:
        name: of the setting, where only its value was checked.
    """
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in ((name,) if name else ()) + first["loc"]]
    path = ".".join(part for part in parts if not MEMBER.fullmatch(part))
    message = first["msg"][:1].lower() + first["msg"][1:]
    message = re.sub(r"0\.0{6,}\d+", lambda small: f"{float(small[0]):g}", message)
    return f"{shortened(path)}: {message}, got {shown(first['input'])}" if path else shortened(message)


def shown(value: Any) -> str:
    """A value as a message repeats it."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python does not write out integers of thousands of digits
        return "a number of thousands of digits"


def shortened(text: str, most: int = SHOWN) -> str:
    """The text, without its middle where it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"

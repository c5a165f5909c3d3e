"""Settings as frozen dataclasses: each field declares its type, default, check and help text, once.

    @settings
    class Optim:
        lr: Positive = 1e-3
        \"\"\"Adam's learning rate at the first step.\"\"\"

pydantic checks the values; tyro makes a flag of each field, with the string below it as its help. tyro's `Suppress`
marks a field without a flag: it follows from the data or from another setting.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform
from tyro.conf import Suppress

T = TypeVar("T")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
LayerSizes = tuple[PositiveInt, ...]
# Each once, in ascending order: the scenes depend on which counts occur, not on how they were written.
Counts = Annotated[tuple[NonNegativeInt, ...], AfterValidator(lambda counts: tuple(sorted(set(counts))))]
SomeCounts = Annotated[Counts, Field(min_length=1)]


class SettingsError(ValueError):
    """A setting has a wrong name, type or value; the message is one sentence."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass whose values are checked.

    Its constructor raises SettingsError where a value fails its check or a name does not exist.
    """
    made = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", validate_default=False))(cls)
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


def sentence(error: ValidationError) -> str:
    """The first error in one sentence, such as "lr: input should be greater than 0, got -1.0"."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{path}: {message}, got {first['input']!r}" if path else message

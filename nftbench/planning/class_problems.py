"""What is wrong with a plugin's class, in plain lines: attributes of a wrong type, and parameters without a right one.

A class is a frozen dataclass. Its class attributes have the types that its protocol gives them; its fields are its
parameters, each with a type and perhaps a default.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_origin, get_type_hints

from nftbench.contract import Claim
from nftbench.errors import IN_CODE, must, wrong

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Class = Any
"""A class. mypy says of `type` that it cannot be hashed, which a cache needs."""
ALIKE = 0.8
"""How similar a name must be to an attribute's to count as misspelt, as difflib measures it: `claim` and `claims` have
0.91, `scale` and `scope` 0.6."""
_NO_DEFAULT = re.compile(r"non-default argument '(\w+)' follows default argument")
_MUTABLE = re.compile(r"mutable default <class '(\w+)'> for field (\w+) is not allowed")


@functools.cache
def checker(kind: Any) -> TypeAdapter[Any]:
    """The validator of a class or type, cached because building it takes a thousand times as long as using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def attribute_problems(protocol: Class, cls: type[Any]) -> Iterator[str]:
    """For each class attribute that is misspelt, missing or of another type than the protocol says: what it must be."""
    yield from _misspelt(protocol, cls)
    for name, kind in _attributes(protocol).items():
        value = inspect.getattr_static(cls, name, MISSING)
        if not isinstance(value, property) and name not in {field.name for field in fields(cls)}:
            yield from _value_problems(name, kind, value)


def property_problems(protocol: Class, plugin: Any) -> Iterator[str]:
    """The same for attributes that only an object has: those that the class computes, and fields."""
    own = {field.name for field in fields(plugin)}
    for name, kind in _attributes(protocol).items():
        if name in own or isinstance(inspect.getattr_static(type(plugin), name, None), property):
            yield from _value_problems(name, kind, getattr(plugin, name))


def parameter_problems(cls: type[Any]) -> Iterator[str]:
    """For each parameter whose type is none, or whose default is not of this type: what it must be."""
    from pydantic import PydanticUserError, ValidationError

    for field in fields(cls):
        if not field.init:
            continue
        try:
            validator = checker(_type(cls, field))
        except (PydanticUserError, NameError, TypeError, SyntaxError, AttributeError):
            name = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", repr(field.type))
            yield f"{field.name}: {name!r} is no type of a parameter; write one such as float, str or tuple[int, ...]"
            continue
        if field.default is not MISSING:
            try:
                validator.validate_python(field.default)
            except ValidationError as error:
                yield f"{field.name}: its default {wrong(error.errors()[0], IN_CODE)}"


def of_dataclass(error: BaseException) -> str | None:
    """What is wrong with a class that `dataclass` refuses, from its error; None for any other error."""
    if isinstance(error, TypeError) and (found := _NO_DEFAULT.match(str(error))):
        return f"{found[1]}: has no default and stands below a parameter with one; give it a default, or move it up"
    if isinstance(error, ValueError) and (found := _MUTABLE.match(str(error))):
        return f"{found[2]}: its default is a {found[1]}, which can be changed; write a tuple, as in `= (1, 2)`"
    return None


def _type(cls: type[Any], field: Field[Any]) -> Any:
    """The type of a field, which the class may give as text.

    Raises:
        Exception: whatever the text raises as Python, such as NameError.
    """
    owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {}))
    alone = type(field.name, (), {"__annotations__": {field.name: field.type}, "__module__": owner.__module__})
    return get_type_hints(alone, include_extras=True)[field.name]


def _misspelt(protocol: Class, cls: type[Any]) -> Iterator[str]:
    """Each class attribute of the plugin's own that is called almost like one of the protocol's, and has no effect."""
    own = {name: value for base in cls.__mro__ if base not in protocol.__mro__ for name, value in vars(base).items()}
    absent = sorted(_attributes(protocol).keys() - own.keys())
    parameters = {field.name for field in fields(cls)}
    for name, value in sorted(own.items(), key=lambda item: item[0]):
        if name.startswith("_") or name in parameters or callable(value) or hasattr(protocol, name):
            continue
        for near in difflib.get_close_matches(name, absent, n=1, cutoff=ALIKE):
            yield f"{name}: nftbench.{protocol.__name__} has no such attribute; did you mean {near!r}?"


@functools.cache
def _attributes(protocol: Class) -> Mapping[str, Any]:
    """The attributes of a protocol, or the fields of a class, with their types. Properties have that of their value."""
    types = {
        name: get_args(kind)[0] if get_origin(kind) is ClassVar else kind
        for name, kind in get_type_hints(protocol).items()
    }
    properties = {name: item.fget for name, item in vars(protocol).items() if isinstance(item, property)}
    return types | {name: get_type_hints(getter)["return"] for name, getter in properties.items()}


def _value_problems(name: str, kind: Any, value: Any) -> Iterator[str]:
    from pydantic import ValidationError

    try:
        checker(kind).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        said = f"is missing, and {must(problem, IN_CODE)}" if value is MISSING else wrong(problem, IN_CODE)
        yield f"{name}: {'an item ' if problem['loc'] else ''}{said}"
    if isinstance(value, Claim):  # pydantic takes an object of a class without looking into it
        for part, its_kind in _attributes(Claim).items():
            yield from _value_problems(f"{name}.{part}", its_kind, getattr(value, part))

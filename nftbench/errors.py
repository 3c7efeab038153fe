"""The exception for bad input, and what its messages are made of: similar names, wrong values, texts on one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


class NftbenchError(ValueError):
    """Bad input. The message is one line that names the file or key, and a similar valid name if there is one."""


LONGEST = 500
"""The most characters of a text that a plugin says about itself."""


def one_line(text: str) -> str:
    """A text without line breaks and control characters, cut to `LONGEST` characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST]


def shortened(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first texts, and how many more there are: `a, b and 4 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{separator.join(texts[:most])}{more}"


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML file, and in which line, from an error of the package yaml."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    said = str(problem or error)
    return one_line(f"line {mark.line + 1}: {said}" if mark is not None else said)


def suggest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: `; did you mean …?` with the most similar known name.

    If no known name is similar, all of them are listed.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def wrong(problem: Mapping[str, Any], words: Mapping[str, str] | None = None) -> str:
    """What is wrong with a value, as in `must be a whole number, and is 'two'`.

    Args:
        problem: one of the errors of pydantic's `ValidationError`.
        words: what a value must do, by pydantic's type of an error; `IN_CODE` for a value that Python code gives.
    """
    if problem["type"] == "missing":
        return "is missing"
    said = must(problem, words)
    known = problem["type"] in (words or _ALLOWED)
    return f"{said}, and is {one_line(repr(problem['input']))[:80]}" if known else said


def must(problem: Mapping[str, Any], words: Mapping[str, str] | None) -> str:
    """What a value must do, as in `must be a whole number`; arguments as of `wrong`."""
    rule = (words or _ALLOWED).get(str(problem["type"]))
    if rule is not None:
        return f"must {rule.format(**(problem.get('ctx') or {}))}"
    said = str(problem["msg"]).removeprefix("Value error, ")  # such as a text of nftbench or of a plugin
    return said[:1].lower() + said[1:]


_WHOLE, _LIST, _SECTION = "be a whole number", "be a list", "be a section of keys and values"
_ALLOWED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), "be a number"),
    "finite_number": "be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "be true or false"),
    "string_type": "be a text",
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), _LIST),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _SECTION),
    "literal_error": "be {expected}",
    "greater_than": "be above {gt:g}",
    "greater_than_equal": "be {ge:g} or more",
    "less_than": "be below {lt:g}",
    "less_than_equal": "be {le:g} or less",
    "too_short": "hold {min_length} or more",
    "too_long": "hold {max_length} or fewer",
    "string_too_short": "have {min_length} or more characters",
    "string_too_long": "have {max_length} or fewer characters",
}
"""By pydantic's type of an error: what a value must do."""
IN_CODE = _ALLOWED | {
    **dict.fromkeys(("bool_type", "bool_parsing"), "be True or False"),
    "string_type": "be a string",
    "tuple_type": "be a tuple",
    "set_type": "be a set",
    "frozen_set_type": "be a frozenset",
    "is_instance_of": "be an object of the class {class}",
    **dict.fromkeys(("dataclass_type", "dataclass_exact_type"), "be an object of the class {class_name}"),
}
"""The same for a value that Python code gives."""

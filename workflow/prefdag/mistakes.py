"""Explain what is wrong in a section of a suite: one sentence for each mistake, with the key that was meant.

`prefdag.schema.wording` imports this module when there is a mistake: no stage counts it as its code.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from prefdag.familiar_keys import FAMILIAR, LEFT_OUT
from prefdag.schema import Truth


def nearest(name: Any, known: Iterable[str]) -> str | None:
    """Return the known name most like another, if one is."""
    text = str(name).replace("-", "_").lower()
    matches = difflib.get_close_matches(text, list(known), n=5, cutoff=0.65)
    # Two letters in the other order are the commonest slip: dop is dpo, not dpop.
    swapped = {text[:at] + text[at + 1] + text[at] + text[at + 2 :] for at in range(len(text) - 1)}
    return max(matches, key=swapped.__contains__, default=None)


def unknown_key(key: str, known: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """Say what to do about an unknown key.

    Args:
        key: the key.
        known: the keys of its section.
        elsewhere: sections of the suite that have such a key.
    """
    places = [f"it belongs in {' or '.join(f'`{section}`' for section in elsewhere)}"] if elsewhere else []
    hint = [*hints(key, known), *places, "remove it or correct its spelling"][0]
    return f"unknown key; {hint}"


def hints(key: str, known: Sequence[str]) -> list[str]:
    """Return what was probably meant by an unknown key: one of the known keys, or that of another trainer."""
    if answer := FAMILIAR.get(key):
        return [answer if answer.startswith(LEFT_OUT) else f"here it is {answer}"]
    match = nearest(key, known)
    return [f"did you mean `{match}`?"] if match else []


def explain(errors: Sequence[Any], section: type[BaseModel], where: str, inside: str = "") -> str:
    """Return one sentence for each mistake of a validation: where, key, what is allowed, what was stated.

    A section's own check raises `key: what is wrong`, or a line for each mistake; the key is joined to the section's.

    A key that is missing is left out if an unknown key next to it is like it: that one is misspelt. Of a key with
    several types, the types that fit the value furthest are named, in one sentence.

    Args:
        errors: pydantic's `ValidationError.errors()`.
        section: the model of the values.
        where: the file of the values.
        inside: the keys that contain the section.
    """
    meant = set()
    for one in errors:
        if one["type"] == "extra_forbidden":
            *path, key = one["loc"]
            meant.add((*path, nearest(key, _fields_at(section, path))))
    located = [(one, *_keys_of(one["loc"], section)) for one in errors]
    depth: dict[Any, dict[Any, int]] = {}  # of the errors of each type of a union, by the union's place
    for _, keys, chosen in located:
        for union, kind in chosen.items():
            depth.setdefault(union, {})[kind] = max(len(keys), depth.get(union, {}).get(kind, 0))
    places: dict[str, list[str]] = {}
    for one, keys, chosen in located:
        if one["type"] == "missing" and one["loc"] in meant:
            continue
        if one["type"] == "too_short" and _is_wrong_inside(one["loc"], errors):  # pydantic counts the right items alone
            continue
        if all(depth[union][kind] == max(depth[union].values()) for union, kind in chosen.items()):
            for what in _what(one, section).split("\n"):
                inner, rest = _key_in(what, _fields_at(section, one["loc"]))
                key = ".".join(str(part) for part in (*filter(None, [inside]), *keys, *inner))
                places.setdefault(f"{where}: {key}" if key else where, []).append(rest)
    return "\n".join(f"{place}: {what}" for place, whats in places.items() for what in _joined(whats))


def _key_in(sentence: str, fields: Iterable[str]) -> tuple[list[str], str]:
    """Split the sentence of a section's own check, `key: what is wrong`; without such a key there is none."""
    key, colon, what = sentence.partition(": ")
    return ([key], what) if colon and key.partition(".")[0] in fields else ([], sentence)


def _is_wrong_inside(location: Sequence[Any], errors: Sequence[Any]) -> bool:
    size = len(location)
    return any(len(one["loc"]) > size and one["loc"][:size] == location for one in errors)


def _joined(sentences: Sequence[str]) -> list[str]:
    """Return the sentences about one key, `expected a, got x` and `expected b, got x` as `expected a or b, got x`."""
    different = list(dict.fromkeys(sentences))
    wanted, _, got = zip(*(sentence.rpartition(", got ") for sentence in different), strict=True)
    if len(different) > 1 and len(set(got)) == 1 and all(one.startswith("expected ") for one in wanted):
        return [f"expected {' or '.join(one.removeprefix('expected ') for one in wanted)}, got {got[0]}"]
    return different


def _keys_of(location: Sequence[Any], section: type[BaseModel]) -> tuple[tuple[Any, ...], dict[Any, Any]]:
    """Return the keys of pydantic's location of a mistake, and of each union in it, by its place, the type tried."""
    kinds: list[Any] = _alternatives(section)
    keys, chosen = list[Any](), dict[Any, Any]()
    union = False
    for part in location:
        if union:
            chosen[tuple(keys)], union = part, False
            continue
        keys.append(part)
        values = [_alternatives(value) for kind in kinds for value in _value_at(kind, part)]
        kinds, union = [one for each in values for one in each], any(len(each) > 1 for each in values)
    return tuple(keys), chosen


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types of a union without None; another type alone."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) if part is not NoneType for one in _alternatives(part)]
    return [annotation]


def _value_at(kind: Any, key: Any) -> Iterator[Any]:
    """Yield the type of a section's, a mapping's or a list's values at a key."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if key in kind.model_fields:
            yield kind.model_fields[key].annotation
    elif get_origin(kind) in (dict, list, tuple):
        yield get_args(kind)[-1 if get_origin(kind) is dict else 0]


def _what(error: Any, section: type[BaseModel]) -> str:
    context = error.get("ctx", {})
    value = json.dumps(error["input"], default=lambda one: one.value if isinstance(one, Truth) else str(one))
    match error["type"]:
        case "extra_forbidden":
            *path, key = error["loc"]
            return unknown_key(str(key), [*_fields_at(section, path)], _sections_with(section, str(key)))
        case "missing":
            return "missing; this key has no default and must be stated"
        case "greater_than":
            return f"expected a number above {context['gt']:g}, got {value}"
        case "greater_than_equal":
            return f"expected a number of at least {context['ge']:g}, got {value}"
        case "less_than":
            return f"expected a number below {context['lt']:g}, got {value}"
        case "less_than_equal":
            return f"expected a number of at most {context['le']:g}, got {value}"
        case "literal_error" | "enum":
            return f"expected one of {context['expected']}, got {value}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"expected a whole number, got {value}"
        case "float_parsing" | "float_type" | "finite_number":
            return f"expected a finite number, got {value}"
        case "bool_type" | "bool_parsing":
            return f"expected true or false, got {value}"
        case "string_type":
            return f"expected text, got {value}"
        case "list_type" | "tuple_type":
            return f"expected a list, got {value}"
        case "model_type" | "dict_type":
            return f"expected keys and values, got {value}"
        case "too_short":
            return f"expected a list of at least {context['min_length']}, got {value}"
        case "too_long":
            return f"expected a list of at most {context['max_length']}, got {value}"
        case "string_too_short":
            return f"expected a text of at least {context['min_length']} characters, got {value}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {value}"


def _fields_at(section: type[BaseModel], path: Sequence[str | int]) -> dict[str, Any]:
    """Return the fields of the section that a path of keys leads to."""
    models = [section]
    for part in path:
        fields = [model.model_fields[str(part)] for model in models if str(part) in model.model_fields]
        if fields:
            models = [model for field in fields for model in models_in(field.annotation)]
    return {name: field for model in models for name, field in model.model_fields.items()}


def _sections_with(section: type[BaseModel], key: str) -> list[str]:
    """Return the sections directly inside this one that have a key."""
    return [
        name
        for name, field in section.model_fields.items()
        if name != "runs" and any(key in model.model_fields for model in models_in(field.annotation))
    ]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Iterate over the models that an annotation holds, such as that of `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)

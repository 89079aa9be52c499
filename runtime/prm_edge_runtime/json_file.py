"""Decode the JSON files of a package, which must have one meaning only.

In: bytes that nobody trusted yet. Out: what ``json`` makes of them, of any type. Imports nothing
but the standard library and this package's own errors.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Final

from .errors import PackageFormatError

MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024


def decode_json(raw: bytes, where: str) -> object:
    """Decode JSON that has to be unambiguous: UTF-8, no duplicate key, no NaN, no lone surrogate.

    Raises:
        PackageFormatError: naming ``where`` and what is wrong.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise PackageFormatError(
            f"{where} has {len(raw)} bytes; at most {MAX_MANIFEST_BYTES} are allowed: "
            "this is no file that prm-edge wrote, export the package again"
        )
    try:
        data: object = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant
        )
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # lone surrogates fail here
    except UnicodeDecodeError as error:
        raise PackageFormatError(
            f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8 or export again"
        ) from None
    except UnicodeEncodeError:
        raise PackageFormatError(
            f"{where} holds a lone surrogate (an escape such as \\ud800 without its second half): "
            "export the package again"
        ) from None
    except RecursionError:
        raise PackageFormatError(
            f"{where} is nested too deeply: this is no file that prm-edge wrote, export again"
        ) from None
    except ValueError as error:
        raise PackageFormatError(
            f"{where} is not valid JSON: {error}: restore the file or export the package again"
        ) from None
    return data


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return data


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")

"""Take the added tokens out of a ``tokenizer.json``, without decoding its vocabulary.

In: the text of the file. Out: its added tokens, and the same file without them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

# What tokenizers writes before the added tokens. Any other file is decoded whole, which is slower.
_HEAD: Final = re.compile(
    r'\s*\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?("truncation"\s*:\s*null\s*,\s*)?'
    r'("padding"\s*:\s*null\s*,\s*)?"added_tokens"\s*:\s*'
)


def without_added(text: str) -> tuple[list[dict[str, Any]], str]:
    """The added tokens of a tokenizer.json, and the same file without them."""
    head = _HEAD.match(text)
    if head:
        # megabytes of vocabulary follow, which only tokenizers needs to decode
        added, end = json.JSONDecoder().raw_decode(text, head.end())
        return list(added), f"{text[: head.end()]}[]{text[end:]}"
    data = json.loads(text)
    added = data.get("added_tokens", [])
    return list(added), json.dumps({**data, "added_tokens": []}, ensure_ascii=False)

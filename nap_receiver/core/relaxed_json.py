"""JSON with comments, and with commas before closing brackets, as Dokku reads app.json.

That is JWCC (github.com/tailscale/hujson). Libraries for Python lose the places of mistakes, or take minutes for half a
megabyte that somebody made for that (json-with-comments 1.3.0: `"/*`, 160,000 times); so this is one expression.
"""

import json
import re
from collections.abc import Callable
from typing import Any

# Each part can match in one way only, and what is not closed goes to the end: no text takes more than linear time.
_STRING = r'("[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z))'
_COMMENT = re.compile(_STRING + r"|//[^\n]*+|/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/|\Z)", re.DOTALL)
_LAST_COMMA = re.compile(_STRING + r"|,(?=\s*+[}\]])", re.DOTALL)


def loads(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """What `json.loads` makes of the text, of which comments and last commas are spaces; its errors have their places.

    Raises what `json.loads` raises.
    """
    return json.loads(_LAST_COMMA.sub(_blank, _COMMENT.sub(_blank, text)), object_pairs_hook=object_pairs_hook)


def _blank(match: re.Match[str]) -> str:
    return match[1] or re.sub(r"[^\n]", " ", match[0])

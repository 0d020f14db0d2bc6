"""JSON with comments, and with commas before closing brackets, as Dokku reads app.json.

The format is JWCC (github.com/tailscale/hujson). Libraries for Python lose the positions of errors, or take minutes for
half a megabyte of hostile input (json-with-comments 1.3.0: `"/*`, 160,000 times). So this is one regular expression.
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
    """Parse the text as `json.loads` does; comments and trailing commas count as spaces, so positions in errors are
    right.

    Raises what `json.loads` raises.
    """
    return json.loads(_LAST_COMMA.sub(_blank, _COMMENT.sub(_blank, text)), object_pairs_hook=object_pairs_hook)


def _blank(match: re.Match[str]) -> str:
    return match[1] or re.sub(r"[^\n]", " ", match[0])

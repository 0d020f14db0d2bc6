"""Limits for one app or one user, by the settings' `limits`.

An app that already has more, because a limit was lowered, keeps it: only a further increase is refused.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nap_receiver.core.errors import NapError

if TYPE_CHECKING:  # its libraries take longer to import than a connection to the gate otherwise needs
    from nap_receiver.core.settings import LimitSettings


def require_at_most(
    limit: str, limits: "LimitSettings", what: str, number: int, had: int = 0, advice: str = ""
) -> None:
    """Raise `NapError` if `number` is above the limit of this name and above the number before (`had`).

    `what` is the beginning of the sentence that says so: `shop would have 501 variables`.
    """
    most: int = getattr(limits, limit)
    if number > max(most, had):
        raise NapError(
            f"{what}; the limit is {most} (limits.{limit})",
            advice=[*([advice] if advice else []), f"The operator of this nap can raise limits.{limit}."],
        )


def require_variables(app: str, before: Mapping[str, str], after: Mapping[str, str], limits: "LimitSettings") -> None:
    """Raise `NapError` if the variables `after` are above the limits."""
    advice = f"Remove some first: config:unset {app} NAME"
    what = f"{app} would have {len(after)} variables"
    require_at_most("variables", limits, what, len(after), len(before), advice)
    size = _bytes_in(after)
    what = f"{app} would have variables of {size} bytes in all"
    require_at_most("variable_bytes", limits, what, size, _bytes_in(before), advice)


def require_process_types(app: str, number: int, had: int, limits: "LimitSettings") -> None:
    """Raise `NapError` if the number of process types is above the limit."""
    advice = "Remove some from the Procfile, commit, and push again. Running instances were not changed."
    require_at_most("process_types", limits, f"{app} would have {number} process types", number, had, advice)


def require_instances(app: str, before: Mapping[str, int], after: Mapping[str, int], limits: "LimitSettings") -> None:
    """Raise `NapError` if the number of instances, given by process type, is above the limit."""
    number = sum(after.values())
    advice = f"Run fewer of some: ps:scale {app} {next(iter(after), 'web')}=1"
    what = f"{app} would have {number} instances"
    require_at_most("instances", limits, what, number, sum(before.values()), advice)


def _bytes_in(variables: Mapping[str, str]) -> int:
    return sum(len(name) + len(value.encode("utf-8", "surrogateescape")) for name, value in variables.items())

"""Make docs/settings.md from the structs that check the settings.

`python -m nap_receiver.core.settings_page` prints it.
"""

from collections.abc import Iterator

import msgspec

from nap_receiver.core.settings import Field, Settings, fields

_HEAD = """\
# Settings

<!-- Made by `make docs` from nap_receiver/core/settings.py. Change it there. -->

Each setting has a default. These sources can change it, and a later one wins:

1. `settings.toml` in the state directory;
2. the environment of the `nap up` that started nap: all programs of nap use it until `nap down`;
3. the environment of a single command.

The environment variable of the setting `section.name` is `NAP_SECTION_NAME`. nap refuses an unknown name in the file,
an unknown variable that begins with `NAP_`, and an invalid value. The message says where it is.

`nap settings` lists the settings in force, and where each value comes from. After a change, run `nap up` again: it
restarts the programs and apps that use the setting ([operating.md](operating.md#changing-settings)).

In `settings.toml`:

```toml
[ssh]
address = "0.0.0.0:2222"

[deploy]
answer_timeout = 120
```
"""


def page() -> str:
    """The whole page, as Markdown."""
    sections = [_HEAD]
    top = [field for field in fields() if "." not in field.key]
    if top:
        sections.append(_section("Outside of any section", _about(Settings), top))
    for member in msgspec.structs.fields(Settings):
        if isinstance(member.type, type) and issubclass(member.type, msgspec.Struct):
            section = list(fields(member.type, f"{member.name}."))
            sections.append(_section(f"`[{member.name}]`", _about(member.type), section))
    return "\n".join(sections)


def _section(title: str, about: str, settings: list[Field]) -> str:
    return "\n".join([f"## {title}", "", about, "", *_table(settings), ""])


def _table(settings: list[Field]) -> Iterator[str]:
    yield "| setting | variable | default | what it is |"
    yield "|---|---|---|---|"
    for field in settings:
        default = field.default if field.is_number else f'"{field.default}"'
        what = f"{field.description} Expected: {field.expected}."
        yield f"| `{field.key}` | `{field.variable}` | `{default}` | {_cell(what)} |"


def _about(section: type[msgspec.Struct]) -> str:
    return " ".join((section.__doc__ or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    print(page(), end="")

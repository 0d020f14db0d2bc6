"""`completion`: complete nap's commands in a shell."""

import click
from click.shell_completion import BashComplete, ShellComplete, ZshComplete, add_completion_class

from nap_receiver.frontends.commands.table import Caller, command, nap


@add_completion_class
class ColonsInWords(BashComplete):
    """Completion in bash, which treats a colon as a separate word unless COMP_WORDBREAKS excludes it.

    Like click's, but it joins `ps`, `:` and `sc` again, and returns only the text after the colon, which bash replaces.
    """

    source_template = r"""
%(complete_func)s() {
    local IFS=$'\n' completion type value before= words=() i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if ((i > 1)) && [[ ${COMP_WORDS[i]} == :* || ${COMP_WORDS[i - 1]} == *: ]]; then
            words[-1]+=${COMP_WORDS[i]}
        else
            words+=("${COMP_WORDS[i]}")
        fi
    done
    if [[ $COMP_WORDBREAKS == *:* && ${words[-1]} == *:* ]]; then
        before=${words[-1]%%"${words[-1]##*:}"}
    fi
    COMPREPLY=()
    i=$((${#words[@]} - 1))
    for completion in $(COMP_WORDS="${words[*]}" COMP_CWORD=$i %(complete_var)s=bash_complete "$1"); do
        IFS=, read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


_SHELLS: dict[str, type[ShellComplete]] = {"bash": ColonsInWords, "zsh": ZshComplete}


@command("completion")
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def print_completion(caller: Caller, shell: str) -> None:
    """Print the completion script for SHELL. In ~/.bashrc: eval "$(nap completion bash)"."""
    click.echo(_SHELLS[shell](nap, {}, "nap", "_NAP_COMPLETE").source())

"""Push and clone by the libraries that have a git of their own, as a program that uses one would.

usage: client_libraries.py (dulwich | pygit2) push URL REFSPEC… [-o OPTION]…
       client_libraries.py (dulwich | pygit2) clone URL FOLDER

The repository is the current folder. ssh is what `GIT_SSH_COMMAND` says for dulwich; libgit2 has one built in, and
takes the key that `KEY` names. What the library passes on from the other side is printed as it comes.
"""

import argparse
import getpass
import os
import sys
from collections.abc import Iterable


def by_dulwich(asked: argparse.Namespace) -> None:
    from dulwich import porcelain

    screen = sys.stdout.buffer
    if asked.what == "clone":
        porcelain.clone(asked.url, asked.words[0], errstream=screen).close()
        return
    done = porcelain.push(
        ".", asked.url, asked.words, outstream=screen, errstream=screen, push_options=asked.options or None
    )
    end(f"{ref!r}: {why}" for ref, why in (done.ref_status or {}).items() if why)


def by_pygit2(asked: argparse.Namespace) -> None:
    import pygit2

    refused: list[str] = []

    class Callbacks(pygit2.RemoteCallbacks):
        def credentials(
            self, url: str, username_from_url: str | None, allowed_types: pygit2.enums.CredentialType
        ) -> pygit2.Username | pygit2.Keypair:
            user, key = username_from_url or getpass.getuser(), os.environ["KEY"]
            if allowed_types & pygit2.enums.CredentialType.USERNAME:
                return pygit2.Username(user)
            return pygit2.Keypair(user, f"{key}.pub", key, "")

        def certificate_check(self, certificate: object, valid: bool, host: bytes) -> bool:
            return host == b"127.0.0.1"  # libssh2 knows only the hosts in ~/.ssh

        def sideband_progress(self, string: str) -> None:
            print(string, end="", flush=True)

        def push_update_reference(self, refname: str, message: str | None) -> None:
            if message:
                refused.append(f"{refname}: {message}")

    if asked.what == "clone":
        pygit2.clone_repository(asked.url, asked.words[0], callbacks=Callbacks())
        return
    remote = pygit2.Repository(".").remotes.create_anonymous(asked.url)
    remote.push(asked.words, callbacks=Callbacks(), push_options=asked.options or None)
    end(refused)


def end(refused: Iterable[str]) -> None:
    """Fail where a ref was: neither library raises for it."""
    if lines := list(refused):
        sys.exit("\n".join(lines))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("library", choices=["dulwich", "pygit2"])
    arguments.add_argument("what", choices=["push", "clone"])
    arguments.add_argument("url")
    arguments.add_argument("words", nargs="+")
    arguments.add_argument("-o", dest="options", action="append", default=[])
    asked = arguments.parse_args()
    (by_dulwich if asked.library == "dulwich" else by_pygit2)(asked)


if __name__ == "__main__":
    main()

"""Real git repositories for tests, made with the git command."""

import os
import subprocess
from pathlib import Path

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what[0]}": what[1] for who in ("AUTHOR", "COMMITTER") for what in (("NAME", "A"), ("EMAIL", "a@b"))
    },
    **{f"GIT_{who}_DATE": "1431648000 +0200" for who in ("AUTHOR", "COMMITTER")},
}
COMMIT_TIME = 1431648000

Content = bytes | str
"""A file's content: bytes, or text for short."""


class Repository:
    """A bare repository. Commits are written without a work tree, so that file names may be any bytes."""

    def __init__(self, path: Path, object_format: str = "sha1") -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--bare", "--initial-branch=unborn", f"--object-format={object_format}", ".")

    def git(self, *arguments: str | bytes, stdin: bytes = b"") -> bytes:
        """What git says on standard output, without the last line's end."""
        run = subprocess.run(
            ["git", *arguments], cwd=self.path, env=_ENVIRONMENT, input=stdin, capture_output=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.removesuffix(b"\n")

    def commit(
        self,
        files: dict[str | bytes, Content],
        *,
        branch: str = "master",
        modes: dict[str, str] | None = None,
        message: str = "A commit",
    ) -> str:
        """Commit exactly these files on a branch; `modes` other than 100644 by path, as `git ls-tree` shows them.

        Of a symbolic link the content is its target, of a submodule the commit's name.
        """
        stream = [f"commit refs/heads/{branch}\ncommitter A <a@b> {COMMIT_TIME} +0200\n".encode(), _data(message)]
        stream.append(b"deleteall\n")
        for path, content in files.items():
            name = path.encode() if isinstance(path, str) else path
            mode = (modes or {}).get(name.decode(errors="replace"), "100644")
            if mode == "160000":
                assert isinstance(content, str)
                stream.append(f"M {mode} {content} ".encode() + _quoted(name) + b"\n")
            else:
                stream += [f"M {mode} inline ".encode() + _quoted(name) + b"\n", _data(content)]
        self.git("fast-import", "--quiet", "--force", stdin=b"".join(stream))
        return self.git("rev-parse", f"refs/heads/{branch}").decode()

    def object_file(self, name: str) -> Path:
        """Where a loose object lies; unpacks all there are first."""
        packs = list((self.path / "objects" / "pack").glob("*.pack"))
        for pack in packs:
            content = pack.read_bytes()
            for part in (self.path / "objects" / "pack").glob(f"{pack.stem}.*"):
                part.unlink()
            self.git("unpack-objects", "-q", stdin=content)
        return self.path / "objects" / name[:2] / name[2:]


def _data(content: Content) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return f"data {len(data)}\n".encode() + data + b"\n"


def _quoted(name: bytes) -> bytes:
    return b'"' + b"".join(b"\\%03o" % byte for byte in name) + b'"'

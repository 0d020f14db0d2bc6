"""The images that Dockerfiles of public apps start from, made of Debian's packages, under the names they have on a hub.

They have what such an app asks pip for, so that its `pip install` finds it there: no build of a test reaches a registry
of packages.

usage: python -m tests.bases    (makes the root file system, unless it is there)
"""

import subprocess

from tests.debian import IMAGE_SECONDS, RootFilesystem, make

_DEBIAN = RootFilesystem(
    "bases",
    (
        *("python3", "python3-pip", "python3-flask", "python3-fastapi", "python3-starlette", "uvicorn"),
        *("python3-django", "gunicorn", "python3-websockets", "python3-grpcio", "nodejs", "nginx-light", "procps"),
    ),
    """\
ln -s python3 "$root"/usr/bin/python
ln -s pip3 "$root"/usr/local/bin/pip
mkdir -p "$root"/usr/share/nginx/html
rm -f "$root"/etc/nginx/sites-enabled/default
echo 'server { listen 80; root /usr/share/nginx/html; }' >"$root"/etc/nginx/conf.d/default.conf
""",
)
_PYTHON = ("ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_INDEX=1 PIP_ROOT_USER_ACTION=ignore", 'CMD ["python3"]')
_NODE = ('CMD ["node"]',)
_NGINX = ("EXPOSE 80", "STOPSIGNAL SIGQUIT", 'CMD ["nginx", "-g", "daemon off;"]')
BASES = {
    "debian:bookworm-slim": ('CMD ["bash"]',),
    "python:3.11-slim": _PYTHON,
    "node:18-slim": _NODE,
    "nginx:alpine": _NGINX,
}
"""What each image has beside its files, as instructions of a Dockerfile."""


def import_bases(engine: str) -> None:
    """Have this engine know them all; about a minute, and 400 MB of disk, the first time on a computer."""
    docker = ["docker", "--host", engine]
    first, *_ = BASES
    if subprocess.run([*docker, "image", "inspect", first], capture_output=True, timeout=60).returncode != 0:
        subprocess.run([*docker, "import", str(_DEBIAN.tarball()), first], check=True, timeout=IMAGE_SECONDS)
    for name, instructions in BASES.items():
        dockerfile = "\n".join((f"FROM {first}", *instructions))
        subprocess.run(
            [*docker, "build", "--quiet", "--tag", name, "-"], input=dockerfile, text=True, check=True, timeout=60
        )


if __name__ == "__main__":
    make(_DEBIAN)

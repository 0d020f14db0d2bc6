"""Advice for a commit without a Dockerfile at its top: what it has instead, and the command to type."""

import re
from collections.abc import Iterable, Mapping, Sequence

DOCKERFILES = (b"Dockerfile", b"dockerfile", b"Containerfile")
"""The names that a Dockerfile may have at the top, the first that is there counts (podman-build(1) has the last)."""

_OTHER = re.compile(rb"(?:docker|container)file[.-].+|.+[.-](?:docker|container)file|(?:docker|container)file", re.I)
_COMPOSE = re.compile(rb"(?:docker-)?compose(?:\.[\w.-]+)?\.ya?ml")
_PLAIN = re.compile(rb"[\w.+@-][\w.+@/-]*")  # words that a shell takes as they are
_MOST_NAMED = 3

# The first that is there says what the app is made with; the line is a Dockerfile, a slash between its lines.
_KINDS: Mapping[bytes, tuple[str, str]] = {
    b"package.json": ("Node.js", 'FROM node:22-slim / WORKDIR /app / COPY . . / RUN npm ci / CMD ["npm", "start"]'),
    b"requirements.txt": (
        "Python",
        "FROM python:3.12-slim / WORKDIR /app / COPY . . / RUN pip install -r requirements.txt "
        '/ CMD ["python", "app.py"]',
    ),
    b"pyproject.toml": (
        "Python",
        'FROM python:3.12-slim / WORKDIR /app / COPY . . / RUN pip install . / CMD ["python", "app.py"]',
    ),
    b"Gemfile": (
        "Ruby",
        "FROM ruby:3.3 / WORKDIR /app / COPY . . / RUN bundle install / CMD bundle exec rackup --host 0.0.0.0 -p $PORT",
    ),
    b"go.mod": ("Go", 'FROM golang:1.23 / WORKDIR /app / COPY . . / RUN go build -o /serve . / CMD ["/serve"]'),
    b"pom.xml": (
        "Java",
        "FROM maven:3-eclipse-temurin-21 / WORKDIR /app / COPY . . / RUN mvn package / CMD java -jar target/*.jar",
    ),
    b"build.gradle": (
        "Java",
        "FROM gradle:8-jdk21 / WORKDIR /app / COPY . . / RUN gradle build / CMD java -jar build/libs/*.jar",
    ),
    b"Cargo.toml": (
        "Rust",
        'FROM rust:1 / WORKDIR /app / COPY . . / RUN cargo install --path . --root /usr/local / CMD ["NAME"]',
    ),
    b"composer.json": ("PHP", "FROM php:8-apache / COPY . /var/www/html / EXPOSE 80"),
    b"index.php": ("PHP", "FROM php:8-apache / COPY . /var/www/html / EXPOSE 80"),
    b"index.html": ("static", "FROM nginx:alpine / COPY . /usr/share/nginx/html / EXPOSE 80"),
}
_ANY = 'FROM debian:bookworm-slim / COPY . /app / EXPOSE 8080 / CMD ["/app/serve"]'


def what_to_do(top: Sequence[bytes], below: Sequence[bytes]) -> list[str]:
    """Return advice for these names at the top and these paths of Dockerfiles one folder below (`api/Dockerfile`).

    Each line that can be typed begins with four spaces.
    """
    found: list[str] = []
    if others := _plain(name for name in top if _OTHER.fullmatch(name)):
        found += [
            f"The commit has {_listed(others)}; nap builds the one that is named Dockerfile:",
            f"    git mv {others[0]} Dockerfile && git commit -m 'Name the Dockerfile' && git push nap",
        ]
    if folders := _plain(path.rpartition(b"/")[0] for path in below):
        found += [
            f"The commit has a Dockerfile in {_listed(folders)}; each folder can be an app of its own:",
            f"    git subtree push --prefix={folders[0]} nap master",
        ]
    if composed := _plain(name for name in top if _COMPOSE.fullmatch(name)):
        found.append(f"nap does not read {composed[0]}: each of its services that is built is an app of its own.")
    if found:
        return found
    kind, example = next((_KINDS[name] for name in _KINDS if name in top), ("", _ANY))
    what = f"{kind} app" if kind else "app"
    return [
        f"Add a file named Dockerfile that says how to build and start the {what}, for example:",
        f"    {example}",
        "then: git add Dockerfile && git commit -m 'Add a Dockerfile' && git push nap",
    ]


def _plain(names: Iterable[bytes]) -> list[str]:
    return [name.decode() for name in names if _PLAIN.fullmatch(name)]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

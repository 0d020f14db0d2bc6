"""nap's settings: one TOML file and the environment. Each value is checked, and its source is kept.

The structs below are the reference: their types and descriptions make `docs/settings.md` and every error message.
Later sources win: the defaults here, `settings.toml`, the environment that `nap up` was started with, the environment.
"""

import functools
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints
from urllib.parse import unquote

import msgspec

from nap_receiver.core.drafts import put
from nap_receiver.core.errors import NapError, UnknownSetting
from nap_receiver.core.paths import State

ETCD_VARIABLE = "NAP_ETCD_ADDRESS"
"""By this `nap up` says where its own etcd listens, to everything that runs below its state directory."""

PLUGINS = "nap.schedulers"
"""The entry points by which packages bring schedulers (packaging.python.org, "Entry points specification")."""

_ON_A_CLUSTER = {"fleet"}  # of nap's own schedulers
_SHOWN_CHARACTERS = 80
_OTHER_VARIABLES = {"NAP_STATE", "NAP_USER", "NAP_GATE", "NAP_VERDICT"}  # of the state directory, and for the hook


class _Checked(str):
    """Text of a certain form; `expected` says which, in words."""

    expected: ClassVar[str]
    form: ClassVar[re.Pattern[str]]

    @classmethod
    def fits(cls, text: str) -> bool:
        """Whether `text` has it."""
        return bool(cls.form.fullmatch(text))

    @classmethod
    def parse(cls, text: object) -> Self:
        """Raises `ValueError` unless `text` has that form."""
        if not isinstance(text, str) or not cls.fits(text):
            raise ValueError(cls.expected)
        return cls(text)


class SchedulerName(_Checked):
    """What runs the instances: one of nap's own schedulers, or one that another package brings."""

    own: ClassVar[tuple[str, ...]] = ("local", "fleet", "null")
    expected = (
        f"one of {', '.join(map(json.dumps, own))}, or a scheduler of an installed package (entry point {PLUGINS})"
    )

    @classmethod
    def fits(cls, text: str) -> bool:
        return text in cls.own or text in metadata.entry_points(group=PLUGINS).names


class Address(_Checked):
    """`host:port`, where something listens and is reached."""

    expected = 'an address and a port, such as "127.0.0.1:2222"'
    form = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")

    @property
    def host(self) -> str:
        return self.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.rpartition(":")[2])

    @classmethod
    def fits(cls, text: str) -> bool:
        return super().fits(text) and 0 < cls(text).port < 65536


class EtcdAddress(Address):
    """Where etcd listens: `host:port`, or the URL of nap's own socket, which no person writes down."""

    expected = 'an address and a port, such as "10.0.0.10:2379"'

    @classmethod
    def fits(cls, text: str) -> bool:
        return text.startswith("unix:///") or super().fits(text)

    @property
    def socket(self) -> str:
        """The path of the socket; empty for an address and a port."""
        return unquote(self.removeprefix("unix://"), errors="surrogateescape") if self.startswith("unix:///") else ""


class OptionalAddress(Address):
    """One, or nothing."""

    expected = 'an address and a port, such as "0.0.0.0:443", or nothing'

    @classmethod
    def fits(cls, text: str) -> bool:
        return not text or super().fits(text)


class DomainName(_Checked):
    """A domain, in ASCII; empty for none."""

    expected = 'a domain, such as "apps.example.org"'
    form = re.compile(r"|([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class KeyPrefix(_Checked):
    """The beginning of etcd keys: starts with a slash, ends without one."""

    expected = 'a key prefix, such as "/services"'
    form = re.compile(r"(/[A-Za-z0-9._-]+)+")


class EngineUrl(_Checked):
    """Where a Docker Engine listens; empty for the usual places."""

    expected = 'an engine\'s URL, such as "unix:///var/run/docker.sock"'
    form = re.compile(r"|(unix:///|tcp://|http://|https://|ssh://)\S+")


class FleetEndpoint(_Checked):
    """Where fleetctl reaches fleet's API, or etcd where that is its driver."""

    expected = 'a fleet endpoint, such as "unix:///var/run/fleet.sock" or "http://10.0.0.11:49153"'
    form = re.compile(r"(unix:///|http://|https://)\S+")


class FilePath(_Checked):
    """A file's whole path; empty for none."""

    expected = 'the absolute path of a file, such as "/etc/nap/ca.pem"'
    form = re.compile(r"|/[^\x00-\x1f]+")


class LogsPlace(_Checked):
    """Where a machine's journal is read, `{address}` being the machine's; empty for nowhere."""

    expected = 'where to log in, such as "ssh://root@{address}"'
    form = re.compile(r"|ssh://([A-Za-z0-9._-]+@)?\{address\}(:\d{1,5})?")


class MachineMetadata(_Checked):
    """fleet's metadata of machines, as `FLEET_METADATA` takes it; empty for any machine."""

    expected = 'fleet metadata, such as "region=east,disk=ssd"'
    form = re.compile(r"|[A-Za-z0-9._/-]+=[A-Za-z0-9._/-]+(,[A-Za-z0-9._/-]+=[A-Za-z0-9._/-]+)*")


class MachineId(_Checked):
    """A machine's machine-id(5); empty for any machine."""

    expected = "a machine's id, as `fleetctl list-machines --full` shows it"
    form = re.compile(r"|[0-9a-f]{32}")


class HostAddress(_Checked):
    """An address of this machine, on which something can be published and reached."""

    expected = 'an IPv4 address of this machine, such as "127.0.0.1"'
    form = re.compile(r"[0-9.]+")

    @classmethod
    def fits(cls, text: str) -> bool:
        return super().fits(text) and not ipaddress.IPv4Address(text).is_unspecified


class Networks(_Checked):
    """Networks as CIDR writes them, with blanks between; empty for none."""

    expected = 'networks, such as "10.0.0.0/8 192.168.7.0/24"'
    form = re.compile(r"|[0-9A-Fa-f.:/]+( [0-9A-Fa-f.:/]+)*")

    @property
    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(each) for each in self.split()]

    @classmethod
    def fits(cls, text: str) -> bool:
        try:
            return super().fits(text) and cls(text).networks is not None
        except ValueError:
            return False


class Ports(_Checked):
    """TCP ports, with blanks between; empty for none."""

    expected = 'ports, such as "5432 6379"'
    form = re.compile(r"|\d{1,5}( \d{1,5})*")

    @property
    def ports(self) -> list[int]:
        return [int(each) for each in self.split()]

    @classmethod
    def fits(cls, text: str) -> bool:
        return super().fits(text) and all(0 < port < 65536 for port in cls(text).ports)


Seconds = Annotated[int, msgspec.Meta(ge=0, title="seconds")]
Bytes = Annotated[int, msgspec.Meta(ge=0, title="bytes")]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class EtcdSettings(_Section, frozen=True):
    """etcd stores all data of apps. On a single machine, `nap up` runs it. On a cluster, the operator does."""

    address: Annotated[
        EtcdAddress,
        msgspec.Meta(
            description="The address of a cluster's etcd. It has no effect on a single machine: there nap's own etcd "
            "listens on a socket in `run/`."
        ),
    ] = EtcdAddress("127.0.0.1:12379")
    announcements: Annotated[KeyPrefix, msgspec.Meta(description="The prefix of the keys that announce instances.")] = (
        KeyPrefix("/services")
    )
    prefix: Annotated[
        KeyPrefix, msgspec.Meta(description="The prefix of the keys for releases, locks and all other data of nap.")
    ] = KeyPrefix("/nap")
    timeout: Annotated[Seconds, msgspec.Meta(description="Maximum seconds for one call to etcd.")] = 5
    ca: Annotated[
        FilePath,
        msgspec.Meta(
            description="CA certificates that verify etcd's certificate. If set, the receiver and every machine "
            "connect to etcd over TLS. Every machine needs this file at the same path."
        ),
    ] = FilePath("")
    certificate: Annotated[
        FilePath, msgspec.Meta(description="The client certificate for etcd, at the same path on every machine.")
    ] = FilePath("")
    key: Annotated[
        FilePath, msgspec.Meta(description="The key of the client certificate, at the same path on every machine.")
    ] = FilePath("")

    def announcements_of(self, app: str) -> str:
        """Below this, which instances of `app` answer where."""
        return f"{self.announcements}/{app}/"

    def root_of(self, app: str) -> str:
        """Below this, a slash and a name, all that is kept of `app` (`release`)."""
        return f"{self.prefix}/apps/{app}"

    @property
    def access(self) -> str:
        """Below this, a slash and an app's name, whose it is and who may do what with it (`access`)."""
        return f"{self.prefix}/access"

    def access_of(self, app: str) -> str:
        """Whose `app` is, and who may do what with it."""
        return f"{self.access}/{app}"

    @property
    def domains(self) -> str:
        """Below this, a slash and a domain, whose it is; here itself, who added one last (`domains`)."""
        return f"{self.prefix}/domains"

    def proof_of(self, app: str) -> str:
        """What a DNS record must have to prove that a domain may be the app's (`ownership`)."""
        return f"{self.root_of(app)}/proof"

    @property
    def certificates(self) -> str:
        """Below this, a slash and an app's name, the certificate that its owner brought."""
        return f"{self.prefix}/certificates"

    def certificate_of(self, app: str) -> str:
        """The certificate that the owner of `app` brought."""
        return f"{self.certificates}/{app}"

    def config_of(self, app: str, number: int) -> str:
        """A configuration of `app`: of the one that a release has, its number."""
        return f"{self.root_of(app)}/configs/{number:08}"

    def container_of(self, app: str, instance: str) -> str:
        """What the engine is asked to create for an instance (`v3.web.1`) of `app`."""
        return f"{self.root_of(app)}/containers/{instance}"

    def checks_of(self, app: str, instance: str) -> str:
        """Below this, by their number, what the checks of an instance ask."""
        return f"{self.root_of(app)}/checks/{instance}/"

    def up_of(self, app: str) -> str:
        """Below this, which instances of `app` are good that are not announced."""
        return f"{self.root_of(app)}/up/"

    def exits_of(self, app: str) -> str:
        """Below this, how instances of `app` ended that nobody had asked to end."""
        return f"{self.root_of(app)}/exits/"

    @property
    def url(self) -> str:
        """`http://10.0.0.2:2379`, `https://…` where there is a `ca`, or `unix:///…`."""
        if self.address.socket:
            return str(self.address)
        return f"{'https' if self.ca else 'http'}://{self.address}"


class RegistrySettings(_Section, frozen=True):
    """The registry stores images. Pushes go to it, and engines pull from it."""

    address: Annotated[
        Address, msgspec.Meta(description="The address at which the engines that run apps reach the registry.")
    ] = Address("127.0.0.1:15000")


class SshSettings(_Section, frozen=True):
    """The gate: nap's own OpenSSH server, which `nap up` starts."""

    address: Annotated[Address, msgspec.Meta(description="The address of the ssh gate.")] = Address("127.0.0.1:2222")
    max_push: Annotated[
        Bytes, msgspec.Meta(description="Maximum bytes of one push; 0 for no limit. The default is 1 GiB.")
    ] = 1 << 30
    login_timeout: Annotated[
        int,
        msgspec.Meta(
            description="Seconds that a client has to log in. The gate then closes the connection.",
            ge=1,
            title="seconds",
        ),
    ] = 20
    max_logins: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of open connections without a login. The gate refuses more.",
            ge=1,
            title="connections",
        ),
    ] = 200
    max_logins_per_address: Annotated[
        int,
        msgspec.Meta(
            description="The same limit for one IPv4 address, or one IPv6 /64 network. While it is below "
            "`ssh.max_logins`, no single client can block all others.",
            ge=1,
            title="connections",
        ),
    ] = 30
    max_refs: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of branches, tags and other refs in a repository, and in one push.",
            ge=1,
            title="refs",
        ),
    ] = 20_000
    max_ref_bytes: Annotated[
        int, msgspec.Meta(description="Maximum bytes of the name of a ref.", ge=16, title="bytes")
    ] = 255


class EngineSettings(_Section, frozen=True):
    """The Docker Engine that builds images and, on a single machine, runs apps."""

    url: Annotated[
        EngineUrl,
        msgspec.Meta(
            description="The URL of the engine. Empty: `DOCKER_HOST`, or `/var/run/docker.sock` without that "
            "variable; if no engine answers there, nap starts its own."
        ),
    ] = EngineUrl("")


class LocalSettings(_Section, frozen=True):
    """The scheduler of a single machine."""

    host: Annotated[
        HostAddress,
        msgspec.Meta(description="The address on which ports of apps are published, and which is announced."),
    ] = HostAddress("127.0.0.1")
    open_ports: Annotated[
        Ports,
        msgspec.Meta(
            description="TCP ports of this machine that apps and builds can reach, such as that of a database. They "
            "can always reach name servers, the router and ports of apps. Only a `nap up` that runs as "
            "root makes the firewall rules for this."
        ),
    ] = Ports("")


class BuildSettings(_Section, frozen=True):
    """The builder, and what builds may use and reach."""

    engine: Annotated[
        Literal["auto", "buildkit", "classic"],
        msgspec.Meta(
            description="The builder. `auto`: BuildKit on nap's own engine, the classic builder on other engines. "
            "With `buildkit` on another engine, steps run on its default network and have no limits."
        ),
    ] = "auto"
    cache_size: Annotated[
        Bytes,
        msgspec.Meta(description="Maximum bytes of BuildKit's cache; 0 for no limit. The default is 10 GiB."),
    ] = 10 << 30
    memory: Annotated[
        Bytes,
        msgspec.Meta(
            description="Maximum bytes of memory of a build step, or with BuildKit of all builds together; 0 for no "
            "limit. The default is 2 GiB."
        ),
    ] = 2 << 30
    cpus: Annotated[
        float,
        msgspec.Meta(
            description="Maximum number of CPUs of a build step, or with BuildKit of all builds together; 0 for no "
            "limit.",
            ge=0,
            title="processors",
        ),
    ] = 1.0
    pids: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of processes and threads of a build step, or with BuildKit of all builds "
            "together; 0 for no limit. It needs a nap that runs as root on the engine's machine.",
            ge=0,
            title="processes",
        ),
    ] = 1024
    dockerfile_size: Annotated[
        Bytes, msgspec.Meta(description="Maximum bytes of a Dockerfile. The default is 128 KiB.")
    ] = 128 << 10
    download_size: Annotated[
        Bytes,
        msgspec.Meta(
            description="Maximum bytes that `ADD` in one Dockerfile may download in total. The default is 1 GiB."
        ),
    ] = 1 << 30
    private_networks: Annotated[
        Networks,
        msgspec.Meta(
            description="Private networks from which `ADD` may download; empty for none. If they contain an address of "
            'this machine, images may be pulled from registries on it. An example is "10.0.0.0/8". Every app can read '
            "what these networks offer."
        ),
    ] = Networks("")


class ContainerSettings(_Section, frozen=True):
    """Limits of each container of an app. `resource:limit` sets other limits for an app, up to the maximum here."""

    memory: Annotated[Bytes, msgspec.Meta(description="Bytes of memory; 0 for no limit. The default is 1 GiB.")] = (
        1 << 30
    )
    most_memory: Annotated[
        Bytes,
        msgspec.Meta(description="The maximum for `resource:limit --memory`; 0 for no maximum. The default is 4 GiB."),
    ] = 4 << 30
    cpus: Annotated[
        float,
        msgspec.Meta(description="Number of CPUs, such as 0.5 or 2; 0 for no limit.", ge=0, title="processors"),
    ] = 1.0
    most_cpus: Annotated[
        float,
        msgspec.Meta(description="The maximum for `resource:limit --cpu`; 0 for no maximum.", ge=0, title="processors"),
    ] = 4.0
    pids: Annotated[
        int, msgspec.Meta(description="Number of processes and threads; 0 for no limit.", ge=0, title="processes")
    ] = 1024
    log_size: Annotated[
        Bytes,
        msgspec.Meta(description="Bytes of output that the engine keeps; 0 for no limit. The default is 20 MiB."),
    ] = 20 << 20
    ports: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of exposed ports that are published and announced: the one of `PORT` first, "
            "then the lowest ones.",
            ge=1,
            title="ports",
        ),
    ] = 8


class FleetSettings(_Section, frozen=True):
    """The scheduler of a cluster. The first seven settings are fleetctl's own options. The git config of an app's
    repository overrides the last three, by `nap.metadata`, `nap.machine` and `nap.spread`."""

    endpoint: Annotated[
        FleetEndpoint,
        msgspec.Meta(description="The URL of fleet's API or, with `driver` `etcd`, of fleet's etcd."),
    ] = FleetEndpoint("unix:///var/run/fleet.sock")
    driver: Annotated[
        Literal["API", "etcd"], msgspec.Meta(description="The type of the endpoint: fleet's `API`, or its `etcd`.")
    ] = "API"
    tunnel: Annotated[
        str,
        msgspec.Meta(description="A machine through which fleetctl connects to the endpoint over ssh; empty for none."),
    ] = ""
    ca: Annotated[FilePath, msgspec.Meta(description="CA certificates that verify the endpoint's certificate.")] = (
        FilePath("")
    )
    certificate: Annotated[FilePath, msgspec.Meta(description="The client certificate for the endpoint.")] = FilePath(
        ""
    )
    key: Annotated[FilePath, msgspec.Meta(description="The key of the client certificate.")] = FilePath("")
    request_timeout: Annotated[
        int, msgspec.Meta(description="Maximum seconds for one request of fleetctl.", ge=1, title="seconds")
    ] = 5
    fleetctl: Annotated[
        str, msgspec.Meta(description="The program fleetctl: its name, or its path if it is not in `PATH`.")
    ] = "fleetctl"
    logs: Annotated[
        LogsPlace,
        msgspec.Meta(
            description="The ssh URL by which `nap logs` reads the journal of a machine; `{address}` stands for the "
            "address of the machine. Empty: `nap logs` reads no journals."
        ),
    ] = LogsPlace("")
    metadata: Annotated[
        MachineMetadata, msgspec.Meta(description="Apps run on machines with this metadata; empty for all machines.")
    ] = MachineMetadata("")
    machine: Annotated[
        MachineId, msgspec.Meta(description="Apps run on the machine with this id; empty for any machine.")
    ] = MachineId("")
    spread: Annotated[
        Literal["auto", "yes", "no"],
        msgspec.Meta(
            description="Whether each instance of a process type runs on a different machine: `auto` if there are "
            "enough machines, `yes` always, `no` never."
        ),
    ] = "auto"


class RouterSettings(_Section, frozen=True):
    """The web addresses of apps, served by Caddy. On a single machine, `nap up` starts it. On a cluster, see
    docs/router-cluster.md."""

    domain: Annotated[
        DomainName,
        msgspec.Meta(
            description="The domain below which every app has a name, such as `hello.localhost`. Empty: no router, "
            "and no names."
        ),
    ] = DomainName("localhost")
    http: Annotated[Address, msgspec.Meta(description="The address for HTTP.")] = Address("127.0.0.1:12080")
    https: Annotated[
        OptionalAddress,
        msgspec.Meta(
            description="The address for HTTPS. If set, HTTP is redirected to it; empty for HTTP only. Public names "
            "get certificates by ACME. This needs both addresses to be reachable on ports 80 and 443."
        ),
    ] = OptionalAddress("")
    caddy: Annotated[
        str,
        msgspec.Meta(
            description="The path of the Caddy that `nap up` runs, for example one with your own modules. Empty: the "
            "one that was installed with nap; if there is none, Debian's."
        ),
    ] = ""
    verify_domains: Annotated[
        Literal["yes", "no"],
        msgspec.Meta(
            description="Whether a user must prove by a DNS record to own a domain before an app gets it. The "
            "operator, on nap's machine, does not need to."
        ),
    ] = "yes"
    dns_timeout: Annotated[
        int,
        msgspec.Meta(
            description="Maximum seconds for DNS queries, for all domains of one command.", ge=1, title="seconds"
        ),
    ] = 10
    max_domains: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of domains of an app, not counting its own name.", ge=0, title="domains"
        ),
    ] = 50
    certificates_per_hour: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of names for which the router starts to request a public certificate in an "
            "hour. Let's Encrypt accepts 100 an hour.",
            ge=1,
            title="names",
        ),
    ] = 60
    max_certificate: Annotated[
        Bytes,
        msgspec.Meta(
            description="Maximum bytes of a certificate that an owner adds, with its chain and key. The default is 32 "
            "KiB."
        ),
    ] = 1 << 15


Most = Annotated[int, msgspec.Meta(ge=1, title="bytes")]


class CommitSettings(_Section, frozen=True):
    """Limits for a pushed commit, and for reading it. A commit above a limit is not built."""

    max_entries: Annotated[
        int, msgspec.Meta(description="Maximum number of files and directories.", ge=1, title="files and directories")
    ] = 200_000
    max_depth: Annotated[int, msgspec.Meta(description="Maximum depth of directories.", ge=1, title="directories")] = (
        100
    )
    max_manifest: Annotated[
        Most,
        msgspec.Meta(
            description="Maximum bytes of each file that nap reads: Dockerfile, Procfile, app.json, .dockerignore. "
            "The default is 1 MiB."
        ),
    ] = 1 << 20
    max_file: Annotated[Most, msgspec.Meta(description="Maximum bytes of one file. The default is 1 GiB.")] = 1 << 30
    max_size: Annotated[
        Most,
        msgspec.Meta(
            description="Maximum bytes of all files together, without those that `.dockerignore` excludes. The "
            "default is 4 GiB."
        ),
    ] = 4 << 30
    memory: Annotated[
        int,
        msgspec.Meta(
            description="Maximum bytes of memory (address space) of each process that receives or reads a commit. The "
            "default is 2 GiB.",
            ge=1 << 26,
            title="bytes",
        ),
    ] = 2 << 30
    processor_time: Annotated[
        int,
        msgspec.Meta(
            description="Maximum seconds of CPU time of each process that reads a commit.",
            ge=1,
            title="seconds",
        ),
    ] = 300


class DeploySettings(_Section, frozen=True):
    """Timeouts of deploys, and use of disk space."""

    build_timeout: Annotated[
        Seconds, msgspec.Meta(description="Maximum seconds to build an image and push it to the registry.")
    ] = 1800
    answer_timeout: Annotated[
        Seconds,
        msgspec.Meta(
            description="Maximum seconds until an app answers. `git config nap.timeout` in the app's repository "
            "overrides it."
        ),
    ] = 60
    drain: Annotated[
        Seconds,
        msgspec.Meta(
            description="Seconds between withdrawing an old instance and sending it SIGTERM: requests may still be on "
            "their way to it."
        ),
    ] = 2
    grace: Annotated[
        Seconds, msgspec.Meta(description="Seconds between SIGTERM and SIGKILL when an instance is stopped.")
    ] = 30
    keep_releases: Annotated[
        int,
        msgspec.Meta(
            description="Number of an app's last releases whose images are kept; older images are removed.",
            ge=1,
            title="releases",
        ),
    ] = 10
    free_space: Annotated[
        Bytes,
        msgspec.Meta(
            description="Bytes of free disk space that a build needs to start; 0 to disable this check. The default "
            "is 1 GiB."
        ),
    ] = 1 << 30


class LimitSettings(_Section, frozen=True):
    """Limits for one app or one user. If a limit is lowered, what exists stays, and more is refused."""

    apps: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of apps of one user. An app counts for the first of its owners.",
            ge=1,
            title="apps",
        ),
    ] = 100
    keys: Annotated[int, msgspec.Meta(description="Maximum number of ssh keys of one user.", ge=1, title="keys")] = 50
    users: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of users who have a right to one app, including its owners.",
            ge=1,
            title="users",
        ),
    ] = 100
    variables: Annotated[
        int, msgspec.Meta(description="Maximum number of variables of one app.", ge=1, title="variables")
    ] = 500
    variable_bytes: Annotated[
        int,
        msgspec.Meta(
            description="Maximum bytes of the names and values of all variables of one app. The default is 128 KiB.",
            ge=1,
            title="bytes",
        ),
    ] = 1 << 17
    releases: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of releases of one app on record; older records are removed.",
            ge=1,
            title="releases",
        ),
    ] = 100
    process_types: Annotated[
        int, msgspec.Meta(description="Maximum number of process types of one app.", ge=1, title="process types")
    ] = 50
    instances: Annotated[
        int,
        msgspec.Meta(
            description="Maximum number of instances of one app, of all its process types.", ge=1, title="instances"
        ),
    ] = 200


class Settings(_Section, frozen=True):
    """Who runs instances, and who runs the programs that nap needs."""

    scheduler: Annotated[
        SchedulerName,
        msgspec.Meta(
            description="The program that runs instances. `local`: supervisord, on this machine. `fleet`: a fleet "
            "cluster. `null`: nothing; a push builds the image, pushes it to the registry and prints its "
            "name."
        ),
    ] = SchedulerName("local")
    topology: Annotated[
        Literal["auto", "machine", "cluster"],
        msgspec.Meta(
            description="Who runs etcd, the registry and the router. `machine`: nap, on this machine. `cluster`: the "
            "operator. `auto`: `cluster` with the scheduler `fleet`, `machine` with the others."
        ),
    ] = "auto"
    etcd: EtcdSettings = EtcdSettings()
    registry: RegistrySettings = RegistrySettings()
    ssh: SshSettings = SshSettings()
    engine: EngineSettings = EngineSettings()
    local: LocalSettings = LocalSettings()
    router: RouterSettings = RouterSettings()
    fleet: FleetSettings = FleetSettings()
    build: BuildSettings = BuildSettings()
    container: ContainerSettings = ContainerSettings()
    commit: CommitSettings = CommitSettings()
    deploy: DeploySettings = DeploySettings()
    limits: LimitSettings = LimitSettings()

    @property
    def is_single_machine(self) -> bool:
        """Whether nap runs etcd, the registry and the router on this machine; on a cluster its operator does."""
        if self.topology == "auto":
            return self.scheduler not in _ON_A_CLUSTER
        return self.topology == "machine"


@dataclass(frozen=True)
class Field:
    """One setting: `etcd.address`, its type, its default and its description."""

    key: str
    type: Any
    default: object
    description: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "NAP_" + self.key.upper().replace(".", "_")

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        kind = self.type.__origin__ if get_origin(self.type) is Annotated else self.type
        if hasattr(kind, "expected"):
            return str(kind.expected)
        if get_origin(kind) is Literal:
            return "one of " + ", ".join(f'"{choice}"' for choice in get_args(kind))
        if kind is str:
            return "text"
        number = next(meta for meta in self.type.__metadata__ if getattr(meta, "ge", None) is not None)
        return f"a {'whole ' if kind is int else ''}number of {number.title}, {number.ge} or more"

    @property
    def is_number(self) -> bool:
        """Whether a value of it is one."""
        return isinstance(self.default, int | float)


def fields(section: type[msgspec.Struct] = Settings, prefix: str = "") -> Iterator[Field]:
    """Every setting there is, in the order of the structs."""
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from fields(field.type, f"{prefix}{field.name}.")
            continue
        described = [m.description for m in hints[field.name].__metadata__ if getattr(m, "description", None)]
        yield Field(prefix + field.name, hints[field.name], field.default, described[0])


@dataclass(frozen=True)
class Loaded:
    """The settings in force, and for each key where its value came from."""

    settings: Settings
    sources: dict[str, str]

    def value(self, field: "Field") -> str:
        """The value in force, as text."""
        return str(functools.reduce(getattr, field.key.split("."), self.settings))


def load(state: State, environ: Mapping[str, str] = os.environ, started: Mapping[str, str] | None = None) -> Loaded:
    """Read and check every source. Raises `NapError` that names file or variable, key and what was expected.

    `started` stands for the environment that `nap up` was started with, where it is not the recorded one.
    """
    known = {field.key: field for field in fields()}
    values: dict[str, object] = {}
    sources = dict.fromkeys(known, "default")
    started = read_environment(state) if started is None else started
    for source, found in (
        (str(state.settings_file), _file_values(state, known)),
        *_variable_values(started, "environment of nap up: ", known),
        *_variable_values(environ, "environment: ", known),
    ):
        for key, value in found.items():
            values[key] = _checked(known[key], value, source)
            sources[key] = source
    settings = _assembled(Settings, values)
    if settings.is_single_machine and has_own_etcd(state, started):
        values["etcd.address"] = EtcdAddress(state.etcd_url)
        sources["etcd.address"] = f"environment of nap up: {ETCD_VARIABLE}"
        settings = _assembled(Settings, values)
    return Loaded(settings, sources)


def has_own_etcd(state: State, started: Mapping[str, str]) -> bool:
    """Whether the `nap up` that was started with this environment runs an etcd of nap's own, on a socket."""
    return started.get(ETCD_VARIABLE) == state.etcd_url


def settings_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those variables of `environ` that are settings."""
    names = {field.variable for field in fields()}
    return {name: value for name, value in environ.items() if name in names}


def write_environment(state: State, variables: Mapping[str, str]) -> None:
    """Keep settings for everything that runs below this state directory until the next `nap up`."""
    put(state.environment_file, msgspec.json.encode(dict(variables)), 0o600)


def read_environment(state: State) -> dict[str, str]:
    """What `write_environment` kept; empty when `nap up` never ran here."""
    try:
        return msgspec.json.decode(state.environment_file.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}


def _file_values(state: State, known: Mapping[str, Field]) -> dict[str, object]:
    path = state.settings_file
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise NapError(
            f"{path}: {error.strerror}", advice="Make the file readable for the account that runs nap."
        ) from error
    except (ValueError, RecursionError) as error:  # of what is no TOML, no UTF-8, or has too many digits or brackets
        raise NapError(f"{path}: not TOML: {error}") from error
    sections = {key.partition(".")[0] for key in known if "." in key}
    found: dict[str, object] = {}
    for key, value in _flattened(document, sections):
        if key not in known:
            raise UnknownSetting(f"{path}: {key}: {_unknown(key, known)}")
        found[key] = value
    return found


def _flattened(document: Mapping[str, object], sections: set[str]) -> Iterator[tuple[str, object]]:
    for name, value in document.items():
        if name in sections and isinstance(value, dict):
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            yield name, value


def _unknown(key: str, known: Mapping[str, Field]) -> str:
    section = key.partition(".")[0] + "."
    nearby = [name for name in known if name.startswith(section)] or sorted({name.partition(".")[0] for name in known})
    return f"no such setting; there are {', '.join(nearby)}"


def _variable_values(
    environ: Mapping[str, str], label: str, known: Mapping[str, Field]
) -> Iterator[tuple[str, dict[str, object]]]:
    variables = {field.variable: field for field in known.values()}
    for name, text in environ.items():
        if field := variables.get(name):
            number = field.is_number and re.fullmatch(r"[0-9]{1,19}(\.[0-9]{1,19})?", text)
            yield label + name, {field.key: (float(text) if "." in text else int(text)) if number else text}
        elif name.startswith("NAP_") and name not in _OTHER_VARIABLES:
            raise UnknownSetting(f"{label}{name}: no such setting; there are {', '.join(variables)}")


def _checked(field: Field, value: object, source: str) -> object:
    try:
        return msgspec.convert(value, field.type, dec_hook=lambda kind, text: kind.parse(text))
    except (msgspec.ValidationError, ValueError) as error:
        place = source if source.startswith("environment") else f"{source}: {field.key}"
        raise NapError(f"{place}: expected {field.expected}, got {_shown(value)}") from error


def _shown(value: object) -> str:
    return (
        "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)[:_SHOWN_CHARACTERS]
    )


def _assembled(section: type[Any], values: Mapping[str, object], prefix: str = "") -> Any:
    arguments: dict[str, object] = {}
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, _Section):
            arguments[field.name] = _assembled(field.type, values, f"{prefix}{field.name}.")
        elif prefix + field.name in values:
            arguments[field.name] = values[prefix + field.name]
    return section(**arguments)

"""nap's settings: one TOML file and the environment, checked field by field, each value with where it came from.

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

    expected = 'the whole path of a file, such as "/etc/nap/ca.pem"'
    form = re.compile(r"|/[^\x00-\x1f]+")


class LogsPlace(_Checked):
    """Where a machine's journal is read, `{address}` being the machine's; empty for nowhere."""

    expected = 'where to log in, such as "ssh://root@{address}"'
    form = re.compile(r"|ssh://([A-Za-z0-9._-]+@)?\{address\}(:\d{1,5})?")


class MachineMetadata(_Checked):
    """fleet's metadata of machines, as `FLEET_METADATA` takes it; empty for any machine."""

    expected = 'metadata of fleet\'s, such as "region=east,disk=ssd"'
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
    """The one source of truth. `nap up` runs an etcd here; a cluster brings its own."""

    address: Annotated[
        EtcdAddress,
        msgspec.Meta(
            description="Where a cluster's etcd is reached. It has no effect on one machine, where nap's own etcd "
            "listens on a socket in `run/`."
        ),
    ] = EtcdAddress("127.0.0.1:12379")
    announcements: Annotated[KeyPrefix, msgspec.Meta(description="Below this, who answers where.")] = KeyPrefix(
        "/services"
    )
    prefix: Annotated[KeyPrefix, msgspec.Meta(description="Below this, releases and locks.")] = KeyPrefix("/nap")
    timeout: Annotated[Seconds, msgspec.Meta(description="Seconds that one call to etcd may take.")] = 5
    ca: Annotated[
        FilePath,
        msgspec.Meta(
            description="The certificates that etcd's is checked against. With it etcd is spoken to over TLS, by the "
            "receiver and by every machine, each of which has this file in this place."
        ),
    ] = FilePath("")
    certificate: Annotated[FilePath, msgspec.Meta(description="A client's certificate for etcd, likewise.")] = FilePath(
        ""
    )
    key: Annotated[FilePath, msgspec.Meta(description="The key of that certificate, likewise.")] = FilePath("")

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
    """Where images are pushed to and pulled from."""

    address: Annotated[Address, msgspec.Meta(description="The registry, as the engines that run apps reach it.")] = (
        Address("127.0.0.1:15000")
    )


class SshSettings(_Section, frozen=True):
    """The gate's own OpenSSH server, run by `nap up`."""

    address: Annotated[Address, msgspec.Meta(description="Where the ssh gate listens.")] = Address("127.0.0.1:2222")
    max_push: Annotated[
        Bytes, msgspec.Meta(description="Bytes that one push may send; 0 for any number. The default is 1 GiB.")
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
            description="Connections on which nobody has logged in yet. The gate refuses more.",
            ge=1,
            title="connections",
        ),
    ] = 200
    max_logins_per_address: Annotated[
        int,
        msgspec.Meta(
            description="The same from one IPv4 address, or from one /64 network of IPv6. One client can never use up "
            "`ssh.max_logins`, as long as this is less.",
            ge=1,
            title="connections",
        ),
    ] = 30
    max_refs: Annotated[
        int,
        msgspec.Meta(
            description="Branches, tags and other refs that a repository, and one push, may have.", ge=1, title="refs"
        ),
    ] = 20_000
    max_ref_bytes: Annotated[
        int, msgspec.Meta(description="Bytes that the name of a ref may have.", ge=16, title="bytes")
    ] = 255


class EngineSettings(_Section, frozen=True):
    """The Docker Engine that builds and, on one machine, runs."""

    url: Annotated[
        EngineUrl,
        msgspec.Meta(
            description="Where it listens. Empty: `DOCKER_HOST`, then `/var/run/docker.sock`, then one of nap's own."
        ),
    ] = EngineUrl("")


class LocalSettings(_Section, frozen=True):
    """The scheduler of a single machine."""

    host: Annotated[
        HostAddress, msgspec.Meta(description="The address on which apps' ports are published, and which is announced.")
    ] = HostAddress("127.0.0.1")
    open_ports: Annotated[
        Ports,
        msgspec.Meta(
            description="TCP ports of this machine that apps and builds reach, such as that of a database. Without it "
            "they reach name servers, the router and the ports of apps alone, where `nap up` is root's."
        ),
    ] = Ports("")


class BuildSettings(_Section, frozen=True):
    """What makes images, and what a build may use and reach."""

    engine: Annotated[
        Literal["auto", "buildkit", "classic"],
        msgspec.Meta(
            description="The builder. `auto` is BuildKit where the engine is nap's own, and the classic builder "
            "elsewhere. With `buildkit` on another engine, steps are on its default network and have no limits."
        ),
    ] = "auto"
    cache_size: Annotated[
        Bytes,
        msgspec.Meta(description="Bytes that BuildKit's cache may keep; 0 for any number. The default is 10 GiB."),
    ] = 10 << 30
    memory: Annotated[
        Bytes,
        msgspec.Meta(description="Bytes of memory that a step of a build may use; 0 for any. The default is 2 GiB."),
    ] = 2 << 30
    cpus: Annotated[
        float,
        msgspec.Meta(
            description="Processors whose time a step of a build may use; 0 for any number.", ge=0, title="processors"
        ),
    ] = 1.0
    pids: Annotated[
        int,
        msgspec.Meta(
            description="Processes and threads that the steps of a build may have; 0 for any number. "
            "It takes a nap that runs as root where the engine is.",
            ge=0,
            title="processes",
        ),
    ] = 1024
    dockerfile_size: Annotated[
        Bytes, msgspec.Meta(description="Bytes that a Dockerfile may have. The default is 128 KiB.")
    ] = 128 << 10
    download_size: Annotated[
        Bytes,
        msgspec.Meta(description="Bytes that the URLs of a Dockerfile's ADD may have together. The default is 1 GiB."),
    ] = 1 << 30
    private_networks: Annotated[
        Networks,
        msgspec.Meta(
            description="Private networks from which `ADD` may download, and this machine's own from which images may "
            'be pulled, such as "10.0.0.0/8"; empty for none. Every app gets at what answers there.'
        ),
    ] = Networks("")


class ContainerSettings(_Section, frozen=True):
    """What one container of an app may use. `resource:limit` gives an app other limits, up to the most."""

    memory: Annotated[Bytes, msgspec.Meta(description="Bytes of memory; 0 for any number. The default is 1 GiB.")] = (
        1 << 30
    )
    most_memory: Annotated[
        Bytes,
        msgspec.Meta(description="The most that `resource:limit --memory` takes; 0 for any. The default is 4 GiB."),
    ] = 4 << 30
    cpus: Annotated[
        float,
        msgspec.Meta(description="Processors' time, such as 0.5 or 2; 0 for any.", ge=0, title="processors"),
    ] = 1.0
    most_cpus: Annotated[
        float,
        msgspec.Meta(description="The most that `resource:limit --cpu` takes; 0 for any.", ge=0, title="processors"),
    ] = 4.0
    pids: Annotated[
        int, msgspec.Meta(description="Processes and threads; 0 for any number.", ge=0, title="processes")
    ] = 1024
    log_size: Annotated[
        Bytes,
        msgspec.Meta(description="Bytes of output that the engine keeps of it; 0 for any. The default is 20 MiB."),
    ] = 20 << 20
    ports: Annotated[
        int,
        msgspec.Meta(
            description="Exposed ports that are published and announced, the one of PORT and then the lowest.",
            ge=1,
            title="ports",
        ),
    ] = 8


class FleetSettings(_Section, frozen=True):
    """The scheduler of a cluster. The first seven are fleetctl's own options; git config in an app's repository
    overrides the last three: `nap.metadata`, `nap.machine`, `nap.spread`."""

    endpoint: Annotated[
        FleetEndpoint,
        msgspec.Meta(description="Where fleet's API is reached or, with the driver `etcd`, the etcd of fleet."),
    ] = FleetEndpoint("unix:///var/run/fleet.sock")
    driver: Annotated[
        Literal["API", "etcd"], msgspec.Meta(description="What the endpoint is: fleet's `API`, or its `etcd`.")
    ] = "API"
    tunnel: Annotated[
        str,
        msgspec.Meta(description="A machine through which fleetctl reaches the endpoint, over ssh; empty for none."),
    ] = ""
    ca: Annotated[FilePath, msgspec.Meta(description="The certificates that the endpoint's is checked against.")] = (
        FilePath("")
    )
    certificate: Annotated[FilePath, msgspec.Meta(description="A client's certificate for the endpoint.")] = FilePath(
        ""
    )
    key: Annotated[FilePath, msgspec.Meta(description="The key of that certificate.")] = FilePath("")
    request_timeout: Annotated[
        int, msgspec.Meta(description="Seconds that one request of fleetctl's may take.", ge=1, title="seconds")
    ] = 5
    fleetctl: Annotated[
        str, msgspec.Meta(description="The program: its name, or its path where it is not in PATH.")
    ] = "fleetctl"
    logs: Annotated[
        LogsPlace,
        msgspec.Meta(
            description="Where `nap logs` reads a machine's journal, over ssh; `{address}` stands for the machine's. "
            "Empty: nowhere."
        ),
    ] = LogsPlace("")
    metadata: Annotated[
        MachineMetadata, msgspec.Meta(description="Apps run on machines that have this metadata; empty for all.")
    ] = MachineMetadata("")
    machine: Annotated[MachineId, msgspec.Meta(description="Apps run on the machine of this id; empty for any.")] = (
        MachineId("")
    )
    spread: Annotated[
        Literal["auto", "yes", "no"],
        msgspec.Meta(
            description="Whether instances of one process type keep to machines of their own: `auto` where there are "
            "machines enough, `yes` always, `no` never."
        ),
    ] = "auto"


class RouterSettings(_Section, frozen=True):
    """The web addresses of apps, served by Caddy. `nap up` runs it on one machine; on a cluster see docs/router.md."""

    domain: Annotated[
        DomainName,
        msgspec.Meta(description="Below it every app has its name: `hello.localhost`. Empty: no router, and no names."),
    ] = DomainName("localhost")
    http: Annotated[Address, msgspec.Meta(description="Where it listens for HTTP.")] = Address("127.0.0.1:12080")
    https: Annotated[
        OptionalAddress,
        msgspec.Meta(
            description="Where it listens for HTTPS, to which HTTP is redirected then; empty for HTTP alone. Public "
            "names get their certificates by ACME, for which both must be reachable as ports 80 and 443."
        ),
    ] = OptionalAddress("")
    caddy: Annotated[
        str,
        msgspec.Meta(
            description="The Caddy that `nap up` runs, where it is to be one with modules of yours; empty for the one "
            "that was installed with nap, or where there is none, Debian's."
        ),
    ] = ""
    verify_domains: Annotated[
        Literal["yes", "no"],
        msgspec.Meta(
            description="Whether users must prove by a DNS record that a domain is theirs before an app may have it. "
            "The operator, on nap's machine, need not."
        ),
    ] = "yes"
    dns_timeout: Annotated[
        int,
        msgspec.Meta(
            description="Seconds that the DNS has to answer, for all domains of one command.", ge=1, title="seconds"
        ),
    ] = 10
    max_domains: Annotated[
        int, msgspec.Meta(description="Domains that an app may have beside its own name.", ge=0, title="domains")
    ] = 50
    certificates_per_hour: Annotated[
        int,
        msgspec.Meta(
            description="Names for which the router begins to ask a public authority in an hour. Let's Encrypt takes "
            "100 an hour.",
            ge=1,
            title="names",
        ),
    ] = 60
    max_certificate: Annotated[
        Bytes,
        msgspec.Meta(description="Bytes of the certificate that an owner brings, with its chain and key: 32 KiB."),
    ] = 1 << 15


Most = Annotated[int, msgspec.Meta(ge=1, title="bytes")]


class CommitSettings(_Section, frozen=True):
    """What a pushed commit may hold, and what reading it may take. A commit that holds more is not built."""

    max_entries: Annotated[
        int, msgspec.Meta(description="Files and directories.", ge=1, title="files and directories")
    ] = 200_000
    max_depth: Annotated[
        int, msgspec.Meta(description="Directories that a directory may be in.", ge=1, title="directories")
    ] = 100
    max_manifest: Annotated[
        Most,
        msgspec.Meta(description="Bytes of each file that nap reads: Dockerfile, Procfile, app.json, .dockerignore."),
    ] = 1 << 20
    max_file: Annotated[Most, msgspec.Meta(description="Bytes of one file. The default is 1 GiB.")] = 1 << 30
    max_size: Annotated[
        Most,
        msgspec.Meta(
            description="Bytes of all files together that `.dockerignore` does not name. The default is 4 GiB."
        ),
    ] = 4 << 30
    memory: Annotated[
        int,
        msgspec.Meta(
            description="Bytes of memory (address space) that each process may take which receives or reads a commit. "
            "The default is 2 GiB.",
            ge=1 << 26,
            title="bytes",
        ),
    ] = 2 << 30
    processor_time: Annotated[
        int,
        msgspec.Meta(
            description="Seconds of processor time that each process may take which reads a commit.",
            ge=1,
            title="seconds",
        ),
    ] = 300


class DeploySettings(_Section, frozen=True):
    """How long things may take, and what must stay."""

    build_timeout: Annotated[Seconds, msgspec.Meta(description="Seconds for building and pushing an image.")] = 1800
    answer_timeout: Annotated[
        Seconds,
        msgspec.Meta(
            description="Seconds for an app to answer; `git config nap.timeout` in its repository overrides it."
        ),
    ] = 60
    drain: Annotated[
        Seconds,
        msgspec.Meta(
            description="Seconds between withdrawing an old instance and asking it to stop: requests are on their way."
        ),
    ] = 2
    grace: Annotated[
        Seconds, msgspec.Meta(description="Seconds between SIGTERM and SIGKILL when an instance is stopped.")
    ] = 30
    keep_releases: Annotated[
        int,
        msgspec.Meta(
            description="An app's last releases whose images stay; older ones are removed.", ge=1, title="releases"
        ),
    ] = 10
    free_space: Annotated[
        Bytes,
        msgspec.Meta(
            description="Bytes of disk that must be free for a build to begin; 0 for any number. The default is 1 GiB."
        ),
    ] = 1 << 30


class LimitSettings(_Section, frozen=True):
    """How much one app or one user may have. What is there already stays when a limit is lowered; more is refused."""

    apps: Annotated[
        int,
        msgspec.Meta(description="Apps of one user; an app counts for the first of its owners.", ge=1, title="apps"),
    ] = 100
    keys: Annotated[int, msgspec.Meta(description="Keys of one user at the gate.", ge=1, title="keys")] = 50
    users: Annotated[
        int, msgspec.Meta(description="Users who have a right to one app, its owners included.", ge=1, title="users")
    ] = 100
    variables: Annotated[
        int, msgspec.Meta(description="Variables that one app is configured with.", ge=1, title="variables")
    ] = 500
    variable_bytes: Annotated[
        int,
        msgspec.Meta(
            description="Bytes of their names and values together. The default is 128 KiB.", ge=1, title="bytes"
        ),
    ] = 1 << 17
    releases: Annotated[
        int,
        msgspec.Meta(
            description="Releases of one app that are kept on record; older records are removed.",
            ge=1,
            title="releases",
        ),
    ] = 100
    process_types: Annotated[
        int, msgspec.Meta(description="Process types of one app.", ge=1, title="process types")
    ] = 50
    instances: Annotated[
        int, msgspec.Meta(description="Instances of one app, of all its process types.", ge=1, title="instances")
    ] = 200


class Settings(_Section, frozen=True):
    """What runs the units."""

    scheduler: Annotated[
        SchedulerName,
        msgspec.Meta(
            description="What runs the instances: `local` is this machine, through supervisord; `fleet` is a cluster. "
            "`null` runs nothing: a push builds the image, pushes it and prints its name."
        ),
    ] = SchedulerName("local")
    topology: Annotated[
        Literal["auto", "machine", "cluster"],
        msgspec.Meta(
            description="Who runs etcd, the registry and the router: `machine` is nap, on this machine; `cluster` is "
            "its operator. `auto` is `cluster` for the scheduler `fleet`, and `machine` for the others."
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

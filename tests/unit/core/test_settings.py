"""Where settings come from, and how what is wrong with them is told."""

import re
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError, UnknownSetting
from nap_receiver.core.paths import State
from nap_receiver.core.settings import (
    Address,
    EtcdAddress,
    Loaded,
    Settings,
    fields,
    load,
    read_environment,
    settings_variables,
    write_environment,
)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def loaded(state: State, toml: str | bytes = "", **environ: str) -> Loaded:
    state.settings_file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    return load(state, environ, started={})


def complaint(state: State, toml: str | bytes = "", **environ: str) -> str:
    """What is said against these settings, with the file named as the pusher would see it."""
    with pytest.raises(NapError) as error:
        loaded(state, toml, **environ)
    return str(error.value).replace(str(state.settings_file), "settings.toml")


def test_without_a_file_everything_is_the_default(state: State) -> None:
    found = load(state, {})
    assert found.settings == Settings()
    assert set(found.sources.values()) == {"default"}
    assert list(found.sources) == [field.key for field in fields()]


def test_the_defaults_are_what_their_own_fields_expect(state: State) -> None:
    for field in fields():
        assert loaded(state, **{field.variable: str(field.default)}).value(field) == str(field.default)


def test_nothing_listens_beyond_loopback_by_default() -> None:
    for field in fields():
        if (isinstance(field.default, Address) and field.default) or field.key == "local.host":
            assert str(field.default).partition(":")[0] == "127.0.0.1"


def test_later_sources_win_and_each_is_named(state: State) -> None:
    state.settings_file.write_text("[deploy]\ndrain = 1\ngrace = 1\nanswer_timeout = 1\n", encoding="utf-8")
    started = {"NAP_DEPLOY_GRACE": "2", "NAP_DEPLOY_ANSWER_TIMEOUT": "2"}
    found = load(state, {"NAP_DEPLOY_ANSWER_TIMEOUT": "3"}, started)
    assert (found.settings.deploy.drain, found.settings.deploy.grace, found.settings.deploy.answer_timeout) == (1, 2, 3)
    assert found.settings.deploy.build_timeout == 1800
    assert found.sources["deploy.drain"] == str(state.settings_file)
    assert found.sources["deploy.grace"] == "environment of nap up: NAP_DEPLOY_GRACE"
    assert found.sources["deploy.answer_timeout"] == "environment: NAP_DEPLOY_ANSWER_TIMEOUT"
    assert found.sources["deploy.build_timeout"] == "default"


def test_what_nap_up_kept_is_in_force(state: State) -> None:
    write_environment(state, {"NAP_SSH_ADDRESS": "127.0.0.1:2022"})
    found = load(state, {})
    assert found.settings.ssh.address == "127.0.0.1:2022"
    assert found.sources["ssh.address"] == "environment of nap up: NAP_SSH_ADDRESS"
    assert load(state, {}, started={}).sources["ssh.address"] == "default"


def test_on_one_machine_the_etcd_of_nap_s_own_is_in_force(state: State) -> None:
    write_environment(state, {"NAP_ETCD_ADDRESS": state.etcd_url})
    state.settings_file.write_text('etcd.address = "127.0.0.1:1"', encoding="utf-8")
    found = load(state, {"NAP_ETCD_ADDRESS": "127.0.0.1:2"})
    assert found.settings.etcd.url == state.etcd_url
    assert found.settings.etcd.address.socket == str(state.run / "etcd.sock:0")
    assert found.sources["etcd.address"] == "environment of nap up: NAP_ETCD_ADDRESS"

    cluster = load(state, {"NAP_ETCD_ADDRESS": "127.0.0.1:2", "NAP_SCHEDULER": "fleet"})
    assert cluster.settings.etcd.url == "http://127.0.0.1:2"
    elsewhere = load(state, {"NAP_ETCD_ADDRESS": "127.0.0.1:2"}, started={})  # as by `nap router`
    assert elsewhere.settings.etcd.url == "http://127.0.0.1:2"


def test_the_socket_of_etcd_is_found_below_any_state_directory(tmp_path: Path) -> None:
    for name in ("plain", "with space", "100%", "é", "a#b?c", "\udce9"):
        url = State(tmp_path / name).etcd_url
        assert url.isascii()
        assert EtcdAddress.parse(url).socket == str(tmp_path / name / "run" / "etcd.sock:0")


def test_a_state_directory_below_which_grpc_finds_no_socket_is_refused() -> None:
    with pytest.raises(NapError, match=r"^/srv/a,b: the path of a state directory cannot have a comma$"):
        State(Path("/srv/a,b")).require_room_for_sockets()


def test_values_are_of_their_kinds(state: State) -> None:
    found = loaded(
        state,
        '[etcd]\naddress = "[::1]:2379"\nannouncements = "/a/b.c_d"\ntimeout = 0\n[engine]\nurl = "tcp://h:1"',
        NAP_REGISTRY_ADDRESS="registry.example:443",
    )
    assert (found.settings.etcd.address.host, found.settings.etcd.address.port) == ("[::1]", 2379)
    assert (found.settings.registry.address.host, found.settings.registry.address.port) == ("registry.example", 443)
    assert found.settings.etcd.announcements == "/a/b.c_d"
    assert found.settings.etcd.timeout == 0
    assert found.settings.engine.url == "tcp://h:1"


SECONDS = "expected a whole number of seconds, 0 or more, got"
ADDRESS = 'expected an address and a port, such as "127.0.0.1:2222", got'
PREFIX = 'expected a key prefix, such as "/services", got'
ENGINE = 'expected an engine\'s URL, such as "unix:///var/run/docker.sock", got'
HOST = 'expected an IPv4 address of this machine, such as "127.0.0.1", got'


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[deploy]\ndrain = "two"', f'settings.toml: deploy.drain: {SECONDS} "two"'),
        ('[deploy]\ndrain = "2"', f'settings.toml: deploy.drain: {SECONDS} "2"'),
        ("[deploy]\ndrain = -1", f"settings.toml: deploy.drain: {SECONDS} -1"),
        ("[deploy]\ndrain = 1.5", f"settings.toml: deploy.drain: {SECONDS} 1.5"),
        ("[deploy]\ndrain = true", f"settings.toml: deploy.drain: {SECONDS} true"),
        ("[deploy]\ndrain = [1]", f"settings.toml: deploy.drain: {SECONDS} [1]"),
        ("[deploy.drain]\nseconds = 1", f"settings.toml: deploy.drain: {SECONDS} a table"),
        ("[deploy]\ndrain = 2015-05-15", f'settings.toml: deploy.drain: {SECONDS} "2015-05-15"'),
        ('[ssh]\naddress = "2222"', f'settings.toml: ssh.address: {ADDRESS} "2222"'),
        ('[ssh]\naddress = "127.0.0.1:0"', f'settings.toml: ssh.address: {ADDRESS} "127.0.0.1:0"'),
        ('[ssh]\naddress = "127.0.0.1:65536"', f'settings.toml: ssh.address: {ADDRESS} "127.0.0.1:65536"'),
        ('[ssh]\naddress = "::1:22"', f'settings.toml: ssh.address: {ADDRESS} "::1:22"'),
        ('[ssh]\naddress = "a b:22"', f'settings.toml: ssh.address: {ADDRESS} "a b:22"'),
        ("[ssh]\naddress = 2222", f"settings.toml: ssh.address: {ADDRESS} 2222"),
        ('[etcd]\nprefix = "nap"', f'settings.toml: etcd.prefix: {PREFIX} "nap"'),
        ('[etcd]\nprefix = "/nap/"', f'settings.toml: etcd.prefix: {PREFIX} "/nap/"'),
        ('[etcd]\nprefix = "/"', f'settings.toml: etcd.prefix: {PREFIX} "/"'),
        ('[etcd]\nprefix = "/n\\nap"', f'settings.toml: etcd.prefix: {PREFIX} "/n\\nap"'),
        ('[engine]\nurl = "/var/run/docker.sock"', f'settings.toml: engine.url: {ENGINE} "/var/run/docker.sock"'),
        ("[local]\nhost = 1", f"settings.toml: local.host: {HOST} 1"),
        ('[local]\nhost = "0.0.0.0"', f'settings.toml: local.host: {HOST} "0.0.0.0"'),
    ],
)
def test_a_wrong_value_is_told_with_file_key_and_what_was_expected(state: State, toml: str, said: str) -> None:
    assert complaint(state, toml) == said


def test_a_wrong_choice_is_told_with_all_choices(state: State) -> None:
    said = complaint(state, 'scheduler = "swarm"')
    assert re.fullmatch(r'settings\.toml: scheduler: expected one of .*"local".*, got "swarm"', said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NAP_DEPLOY_DRAIN", "two", f'environment: NAP_DEPLOY_DRAIN: {SECONDS} "two"'),
        ("NAP_DEPLOY_DRAIN", "", f'environment: NAP_DEPLOY_DRAIN: {SECONDS} ""'),
        ("NAP_DEPLOY_DRAIN", "-1", f'environment: NAP_DEPLOY_DRAIN: {SECONDS} "-1"'),
        ("NAP_SSH_ADDRESS", "2222", f'environment: NAP_SSH_ADDRESS: {ADDRESS} "2222"'),
        ("NAP_ENGINE_URL", "x", f'environment: NAP_ENGINE_URL: {ENGINE} "x"'),
    ],
)
def test_a_wrong_variable_is_told_with_its_name_and_what_was_expected(
    state: State, name: str, value: str, said: str
) -> None:
    assert complaint(state, **{name: value}) == said


def test_a_wrong_value_that_nap_up_kept_is_told_as_such(state: State) -> None:
    with pytest.raises(NapError, match=r"^environment of nap up: NAP_DEPLOY_DRAIN: expected a whole number"):
        load(state, {}, {"NAP_DEPLOY_DRAIN": "two"})


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[deploy]\ndrian = 1", "settings.toml: deploy.drian: no such setting; there are deploy.build_timeout, "),
        ("[sssh]\naddress = 1", "settings.toml: sssh: no such setting; there are build, commit, container, deploy, "),
        ("drain = 1", "settings.toml: drain: no such setting; there are build, commit, container, deploy, "),
        ("deploy = 1", "settings.toml: deploy: no such setting; there are deploy.build_timeout, "),
        ("[[deploy]]\ndrain = 1", "settings.toml: deploy: no such setting"),
        ("[etcd.tls]\ncert = 1", "settings.toml: etcd.tls: no such setting; there are etcd.address, "),
    ],
)
def test_an_unknown_key_is_told_with_those_there_are(state: State, toml: str, said: str) -> None:
    assert complaint(state, toml).startswith(said)
    with pytest.raises(UnknownSetting):
        loaded(state, toml)


def test_an_unknown_variable_of_a_section_is_told(state: State) -> None:
    said = complaint(state, NAP_ETCD_ADRESS="127.0.0.1:1")
    assert said.startswith("environment: NAP_ETCD_ADRESS: no such setting; there are NAP_")
    assert "NAP_ETCD_ADDRESS" in said


def test_other_variables_are_left_alone(state: State) -> None:
    environ = {"NAP_STATE": "/x", "NAP_USER": "ann", "PATH": "/bin", "ETCD_ADDRESS": "x"}
    assert set(loaded(state, **environ).sources.values()) == {"default"}


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[deploy\n", r"settings\.toml: not TOML: .*line 1"),
        ("[deploy]\ndrain = \n", r"settings\.toml: not TOML: .*line 2"),
        ("drain = 1\ndrain = 2\n", r"settings\.toml: not TOML: "),
        (b"# caf\xe9\n", r"settings\.toml: not TOML: .*utf-8"),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(state: State, toml: str | bytes, said: str) -> None:
    assert re.match(said, complaint(state, toml))


def test_a_file_that_cannot_be_read_is_told(state: State) -> None:
    state.settings_file.mkdir()
    with pytest.raises(NapError, match=r"settings\.toml: Is a directory") as error:
        load(state, {})
    assert error.value.advice


def test_what_was_kept_of_the_environment_is_read_back(state: State) -> None:
    assert read_environment(state) == {}
    variables = {"NAP_LOCAL_HOST": 'a "b" \\ \n é=$x', "NAP_ENGINE_URL": ""}
    write_environment(state, variables)
    assert read_environment(state) == variables
    write_environment(state, {})
    assert read_environment(state) == {}
    assert [path.name for path in state.run.iterdir()] == [state.environment_file.name]


def test_only_settings_are_kept_of_an_environment() -> None:
    environ = {"NAP_SSH_ADDRESS": "x", "NAP_STATE": "/x", "PATH": "/bin", "NAP_SCHEDULER": "local"}
    assert settings_variables(environ) == {"NAP_SSH_ADDRESS": "x", "NAP_SCHEDULER": "local"}


def test_every_setting_says_what_it_is_and_what_it_expects() -> None:
    for field in fields():
        assert field.description.endswith("."), field.key
        assert field.expected, field.key
        assert re.fullmatch(r"NAP_[A-Z_]+", field.variable)

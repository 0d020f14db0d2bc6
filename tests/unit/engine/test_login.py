"""The login of nap's own registry: made once, kept while it is of use, and sent to no other registry."""

from pathlib import Path

import bcrypt
import msgspec
import pytest

from nap_receiver.core.paths import State
from nap_receiver.core.settings import Address, RegistrySettings, Settings
from nap_receiver.engine.login import login_of, make_login

SETTINGS = Settings()
ELSEWHERE = Settings(registry=RegistrySettings(Address("127.0.0.1:1")))


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path)
    make_login(made, SETTINGS)
    return made


def test_the_registry_knows_the_login_and_no_other_account_can_read_it(state: State) -> None:
    login = login_of(state, SETTINGS)
    assert login
    user, _, known = (state.registry_login / "htpasswd").read_text().strip().partition(":")
    assert user == login.user
    assert bcrypt.checkpw(login.password.encode(), known.encode())
    assert len(login.password) >= 43, "32 random bytes"
    assert login.password not in repr(login)
    assert state.registry_login.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in state.registry_login.iterdir()} == {
        "htpasswd": 0o600,
        "config.json": 0o600,
    }


def test_the_login_stays_while_it_is_of_use(state: State) -> None:
    before = login_of(state, SETTINGS)
    make_login(state, SETTINGS)
    assert login_of(state, SETTINGS) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("htpasswd", ""),
        ("htpasswd", "nap:$2b$04$vp9n0H3M/AMZaW7crAMZl.0xBSUYCVqW4dVOKUAmcsHWIdB5NrBI."),
        ("htpasswd", "nap"),
        ("htpasswd", "nap:no hash"),
        ("config.json", "{"),
        ("config.json", '{"auths": {}}'),
        ("config.json", '{"auths": {"127.0.0.1:15000": {"auth": "*"}}}'),
        ("config.json", '{"auths": {"127.0.0.1:15000": {"auth": "/w=="}}}'),
    ],
)
def test_a_login_that_is_damaged_is_made_again(state: State, name: str, text: str) -> None:
    (state.registry_login / name).write_text(text)
    make_login(state, SETTINGS)
    login = login_of(state, SETTINGS)
    assert login
    known = (state.registry_login / "htpasswd").read_bytes().strip().partition(b":")[2]
    assert bcrypt.checkpw(login.password.encode(), known)


def test_no_other_registry_is_sent_the_login(state: State) -> None:
    assert login_of(state, ELSEWHERE) is None
    assert login_of(state, msgspec.structs.replace(SETTINGS, scheduler="fleet")) is None
    before = login_of(state, SETTINGS)
    make_login(state, ELSEWHERE)
    after = login_of(state, ELSEWHERE)
    assert after
    assert before
    assert after.password != before.password

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from argon2 import PasswordHasher
from pymongo.asynchronous.database import AsyncDatabase

from config.errors import ConfigError
from gateway.users import Users

Database = AsyncDatabase[dict[str, Any]]
PASSWORD = "correct horse"
# The cheapest that the algorithm takes: these tests are about what is done with a hash, not about its cost.
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def users(database: Database) -> Users:
    return Users(database, CHEAP)


async def test_a_user_is_who_knows_the_password(users: Users) -> None:
    created = await users.create("ada", PASSWORD, "user")
    assert (created.name, created.role, created.disabled) == ("ada", "user", False)
    verified = await users.verify("ada", PASSWORD)
    assert verified is not None
    assert (verified.name, verified.role) == ("ada", "user")
    assert await users.verify("ada", PASSWORD + "!") is None
    assert await users.verify("bob", PASSWORD) is None


async def test_the_password_is_kept_as_argon2id_only(users: Users, database: Database) -> None:
    await Users(database).create("ada", PASSWORD, "user")
    document = await database.users.find_one({"_id": "ada"})
    assert document is not None
    assert document["password_hash"].startswith("$argon2id$")
    assert PASSWORD not in str(document)


async def test_a_disabled_user_gets_in_no_more(users: Users) -> None:
    await users.create("ada", PASSWORD, "user")
    await users.set_disabled("ada", True)
    assert await users.verify("ada", PASSWORD) is None
    await users.set_disabled("ada", False)
    assert await users.verify("ada", PASSWORD) is not None


async def test_a_new_password_replaces_the_old_one(users: Users) -> None:
    before = await users.create("ada", PASSWORD, "user")
    await users.set_password("ada", "battery staple")
    assert await users.verify("ada", PASSWORD) is None
    after = await users.verify("ada", "battery staple")
    assert after is not None
    assert after.password_changed_at > before.password_changed_at


async def test_a_name_is_taken_once_whoever_asks_first(users: Users) -> None:
    tries = [users.create("ada", PASSWORD, role) for role in ("user", "admin", "service")]
    results = await asyncio.gather(*tries, return_exceptions=True)
    refused = [result for result in results if isinstance(result, ConfigError)]
    assert len(refused) == 2
    assert "already" in refused[0].message
    assert len(await users.list()) == 1


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 65, "ada\n", "../x", "ä"])
async def test_a_name_that_will_not_do_is_refused(users: Users, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a user name"):
        await users.create(name, PASSWORD, "user")


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025, "adalovelace"])
async def test_a_password_that_will_not_do_is_refused(users: Users, password: str) -> None:
    with pytest.raises(ConfigError, match="A password needs 8 to 1024"):
        await users.create("adalovelace", password, "user")


async def test_who_does_not_exist_cannot_be_changed(users: Users) -> None:
    with pytest.raises(ConfigError, match="no user 'bob'"):
        await users.set_password("bob", PASSWORD)
    with pytest.raises(ConfigError, match="no user 'bob'"):
        await users.set_disabled("bob", True)
    assert await users.find("bob") is None


async def test_users_are_listed_by_name(users: Users) -> None:
    for name in ("eve", "ada", "bob"):
        await users.create(name, PASSWORD, "user")
    assert [user.name for user in await users.list()] == ["ada", "bob", "eve"]


async def test_a_hash_with_old_parameters_is_renewed_at_the_next_login(users: Users, database: Database) -> None:
    created = await users.create("ada", PASSWORD, "user")
    dearer = Users(database, PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    assert await dearer.verify("ada", PASSWORD) is not None
    document = await database.users.find_one({"_id": "ada"})
    assert document is not None
    assert "m=16,t=2,p=1" in document["password_hash"]
    renewed = await dearer.verify("ada", PASSWORD)
    assert renewed is not None
    # To the millisecond, as the database keeps it: nobody is logged out by a renewal.
    assert abs((renewed.password_changed_at - created.password_changed_at).total_seconds()) < 0.001


async def test_a_damaged_hash_lets_nobody_in(users: Users, database: Database) -> None:
    await users.create("ada", PASSWORD, "user")
    await database.users.update_one({"_id": "ada"}, {"$set": {"password_hash": "rubbish"}})
    assert await users.verify("ada", PASSWORD) is None


async def work(call: Callable[[], Awaitable[object]]) -> float:
    """Processor time of all threads: what others do on the machine does not count."""
    start = time.process_time()
    await call()
    return time.process_time() - start


async def test_an_unknown_user_takes_as_long_as_a_wrong_password(database: Database) -> None:
    users = Users(database)
    await users.create("ada", PASSWORD, "user")
    known, unknown = [], []
    for _ in range(7):  # by turns, for both to meet the same machine
        known.append(await work(lambda: users.verify("ada", "wrong password")))
        unknown.append(await work(lambda: users.verify("bob", "wrong password")))
    assert 0.5 < min(unknown) / min(known) < 2


async def test_hashing_does_not_hold_up_the_loop(database: Database) -> None:
    users = Users(database)
    logins = asyncio.gather(*(users.verify(f"user{number}", PASSWORD) for number in range(6)))
    turns = 0
    while not logins.done():
        await asyncio.sleep(0)
        turns += 1
    assert await logins == [None] * 6
    assert turns > 100


async def test_the_first_start_creates_the_admin_however_many_processes_start(database: Database) -> None:
    processes = [Users(database, CHEAP) for _ in range(4)]
    outcomes = await asyncio.gather(*(users.ensure_admin(PASSWORD, from_env=True) for users in processes))
    assert sorted(outcomes) == ["created", "unchanged", "unchanged", "unchanged"]
    admin = await processes[0].verify("admin", PASSWORD)
    assert admin is not None
    assert admin.role == "admin"


async def test_a_changed_admin_password_in_the_environment_takes_effect(database: Database) -> None:
    processes = [Users(database, CHEAP) for _ in range(3)]
    await processes[0].ensure_admin(PASSWORD, from_env=True)
    outcomes = await asyncio.gather(*(users.ensure_admin("battery staple", from_env=True) for users in processes))
    assert sorted(outcomes) == ["unchanged", "unchanged", "updated"]
    assert await processes[0].verify("admin", "battery staple") is not None
    assert await processes[0].verify("admin", PASSWORD) is None


async def test_a_generated_password_never_replaces_one_that_was_set(users: Users) -> None:
    await users.ensure_admin(PASSWORD, from_env=False)
    await users.set_password("admin", "battery staple")
    assert await users.ensure_admin(PASSWORD, from_env=False) == "unchanged"
    assert await users.verify("admin", "battery staple") is not None


async def test_an_admin_password_that_will_not_do_is_refused_at_the_first_start(users: Users) -> None:
    with pytest.raises(ConfigError, match="A password needs"):
        await users.ensure_admin("short", from_env=True)

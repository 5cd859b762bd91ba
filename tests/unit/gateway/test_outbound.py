"""Nothing is reached that a client should not reach, whatever he writes and whatever names answer."""

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.cancellation import cancel_all
from config.outbound import OutboundSettings
from gateway.outbound.guard import Answer, ExchangeFailed, Guard, Outbound, SystemResolver, UrlRefused
from gateway.outbound.images import fetch
from tests.conditions import eventually
from tests.receivers import Message, Receiver, Reply, receiver

PUBLIC = ["93.184.216.34"]


class Names:
    """A resolver that answers ``answers`` in turn, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def guard(names: Any = None, **settings: Any) -> Guard:
    return Guard(OutboundSettings.model_validate(settings), names or Names(PUBLIC))


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def outbounds() -> AsyncIterator[list[Outbound]]:
    made: list[Outbound] = []
    yield made
    for outbound in made:
        await outbound.close()


async def ask(outbounds: list[Outbound], checked: Guard, url: str, **options: Any) -> Any:
    outbound = Outbound(checked, 4)
    outbounds.append(outbound)
    told = {"timeout": 5.0, "most": 100} | options
    return await outbound.exchange("POST", checked.check(url), {"a": "b"}, b"hello", **told)


NASTY = """
    http://127.0.0.1/ http://127.0.0.1:8080/ http://10.0.0.1/ http://172.16.5.4/ http://192.168.1.1/ http://100.64.0.1/
    http://169.254.169.254/latest/meta-data/ http://0.0.0.0/ http://0/ http://224.0.0.1/ http://255.255.255.255/
    http://[::1]/ http://[::]/ http://[fe80::1]/ http://[fd00:ec2::254]/ http://[fc00::1]/ http://[ff02::1]/
    http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::ffff:169.254.169.254]/ http://[::127.0.0.1]/
    http://[64:ff9b::7f00:1]/ http://[64:ff9b::169.254.169.254]/ http://[2002:7f00:1::]/ http://[2001::1]/
    http://[0:0:0:0:0:0:0:1]/ http://[fe80::1%25eth0]/ http://[2606:4700::1111%25eth0]/ http://[::1%25lo]:80/
    http://2130706433/ http://3232235521/ http://0x7f000001/ http://0x7f.0.0.1/ http://0X7F.1/ http://0177.0.0.1/
    http://017700000001/ http://127.1/ http://127.0.1/ http://127.0.0.1./ http://0x7f.1./ http://127.000.000.001/
    http://1.2.3.4.5/ http://256.1.1.1/ http://a.1/ http://a.0x1/ http://999999999999/
    http://127\u30020\u30020\u30021/ http://127\uff0e0\uff0e0\uff0e1/ http://127\uff610\uff610\uff611/
    http://\uff11\uff12\uff17.0.0.1/ http://\u2460\u2461\u2466.0.0.1/ http://\uff4cocalhost/
    http://user@example.com/ http://user:pw@example.com/ http://:pw@example.com/ http://@example.com/
    http://example.com@127.0.0.1/ http://127.0.0.1@example.com/ http://a@b@example.com/ http://example.com:80@[::1]/
    http:/\\127.0.0.1/ http:\\\\127.0.0.1/ http://example.com\\@127.0.0.1/ http://example.com\\.evil.example/
    ftp://example.com/ file:///etc/passwd gopher://example.com/ unix:///run/docker.sock javascript:alert(1)
    data:text/plain,x //example.com/ /path example.com http: http:// http:///x http://:80/ https://?x http://#x
    http://example.com:22/ http://example.com:25/ http://example.com:0/ http://example.com:65536/ http://example.com:-1/
    http://example.com:99999/ http://example.com:1023/ http://example.com:8o/ http://.example.com/ http://a..b/
    http://exa%6dple.com/ http://exam%00ple.com/ http://ex*mple.com/ http://-a.example/ http://a_b!.example/
    http://{host}/ http://<x>/ http://a|b/ http://a`b/ http://a^b/ http://[::1/ http://::1/ http://[x]/ http://[v1.a]/
    http://[::1].example.com/
"""


@pytest.mark.parametrize("url", NASTY.split())
def test_an_address_that_is_not_plainly_a_public_one_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        guard().check(url)


@pytest.mark.parametrize(
    "url",
    ["http://exa mple.com/", "http://example.com/\r\nX: y", "http://example.com\t/", "http://example.com/\x00", "",
     " http://example.com", "http://" + "a" * 2048 + ".com", "http://" + "a" * 64 + ".com/", "http://example.com/\u2028"],
)  # fmt: skip
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        guard().check(url)


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "https://example.com/hook?a=b@c#d", "HTTPS://EXAMPLE.com:443/", "http://8.8.8.8:8080/x",
     "https://[2606:4700::1111]:8443/", "https://bücher.example/", "https://xn--bcher-kva.example./", "https://a_b.example/",
     "https://example.com/%2e%2e/@", "https://1.example/", "https://0x7f.example/", "http://example.com:65535/"],
)  # fmt: skip
def test_what_looks_public_is_let_through_to_be_resolved(url: str) -> None:
    guard().check(url)


async def test_a_name_is_refused_where_any_of_its_addresses_is_private() -> None:
    for answer in (["10.0.0.1"], ["93.184.216.34", "::1"], ["169.254.169.254"], ["fe80::1%eth0", "93.184.216.34"]):
        with pytest.raises(UrlRefused):
            await guard(Names(answer)).addresses("example.com")
    assert [str(address) for address in await guard(Names(PUBLIC * 9)).addresses("example.com")] == PUBLIC * 4


async def test_what_the_systems_resolver_takes_for_an_address_is_checked_as_one() -> None:
    resolver = SystemResolver()
    try:
        for name in ("localhost", "2130706433", "0x7f.1", "127.1", "localhost."):
            with pytest.raises(UrlRefused):
                await guard(resolver).addresses(name)
        with pytest.raises(OSError, match=r"."):
            await guard(resolver).addresses("nobody.invalid")
    finally:
        resolver.close()


class SlowNames:
    """The system's resolver, that answers for no ``slow`` name before ``answers`` is set. ``asked``: of each name."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked: Counter[str] = Counter()

    def getaddrinfo(self, host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self.asked[host] += 1
        if host.startswith("slow"):
            assert self.answers.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC[0], 0))]

    async def are_asked(self, names: int) -> None:
        async def asked() -> bool:
            return len(self.asked) == names

        await eventually(asked)


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    names = SlowNames()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.answers.set()


@pytest.fixture
def resolver() -> Iterator[SystemResolver]:
    resolver = SystemResolver()
    yield resolver
    resolver.close()


async def test_names_that_nobody_answers_for_leave_room_for_others(
    slow_names: SlowNames, resolver: SystemResolver
) -> None:
    """Their threads go on for long after those who asked have given up."""
    asking = [asyncio.create_task(resolver(f"slow{number}.example")) for number in range(200)]
    await slow_names.are_asked(200)
    await cancel_all(asking)
    async with asyncio.timeout(5):
        assert await resolver("example.com") == PUBLIC


async def test_a_name_that_is_still_looked_up_is_waited_for_and_not_asked_for_again(
    slow_names: SlowNames, resolver: SystemResolver
) -> None:
    given_up = asyncio.create_task(resolver("slow.example"))
    await slow_names.are_asked(1)
    waiting = [asyncio.create_task(resolver("slow.example")) for _ in range(5)]
    await cancel_all([given_up, waiting.pop()])
    slow_names.answers.set()
    assert await asyncio.gather(*waiting) == [PUBLIC] * 4
    assert slow_names.asked["slow.example"] == 1
    assert await resolver("slow.example") == PUBLIC
    assert slow_names.asked["slow.example"] == 2


async def test_a_name_that_has_no_thread_yet_is_forgotten_with_who_has_asked(slow_names: SlowNames) -> None:
    resolver = SystemResolver(1)
    slow = asyncio.create_task(resolver("slow.example"))
    await slow_names.are_asked(1)
    given_up, waits = (asyncio.create_task(resolver(name)) for name in ("other.example", "other.example"))
    # So far that both have begun.
    await asyncio.sleep(0)
    await cancel_all([given_up])
    slow_names.answers.set()
    assert await asyncio.gather(slow, waits) == [PUBLIC, PUBLIC]
    assert slow_names.asked["other.example"] == 1
    resolver.close()


async def test_the_message_tells_nothing_of_the_network() -> None:
    with pytest.raises(UrlRefused) as refused:
        await guard(Names(["10.20.30.40"])).addresses("intranet.example")
    assert "10.20" not in refused.value.message
    assert refused.value.code == "url_refused"


async def test_a_refusal_comes_before_anything_is_connected(hook: Receiver, outbounds: list[Outbound]) -> None:
    with pytest.raises(UrlRefused):
        await ask(outbounds, guard(Names(["127.0.0.1"])), hook.url(host="receiver.example"))
    assert hook.messages == []


async def test_a_name_that_changes_its_answer_reaches_only_what_was_checked(
    hook: Receiver, outbounds: list[Outbound]
) -> None:
    """DNS rebinding: public when it is looked at, private when it is connected to."""
    names = Names(PUBLIC, ["127.0.0.1"])
    checked = guard(names)
    url = hook.url(host="rebinding.example")
    await checked.admit(url)
    with pytest.raises(UrlRefused):
        await ask(outbounds, checked, url)
    assert hook.messages == []
    assert len(names.asked) == 2


async def test_the_connection_is_made_to_the_checked_address_without_asking_again(
    hook: Receiver, outbounds: list[Outbound]
) -> None:
    names = Names(["127.0.0.1"], ["192.0.2.1"])
    checked = guard(names, allow_private_hosts=["receiver.example"])
    answer = await ask(outbounds, checked, hook.url(host="receiver.example"))
    assert (answer.status, names.asked) == (204, ["receiver.example"])
    [message] = hook.messages
    assert message.headers["host"] == f"receiver.example:{hook.port}"
    assert message.body == b"hello"


async def test_the_next_address_of_a_name_is_tried_where_one_does_not_answer(
    hook: Receiver, outbounds: list[Outbound]
) -> None:
    checked = guard(Names(["127.0.0.2", "127.0.0.1"]), allow_private_hosts=["receiver.example"])
    assert (await ask(outbounds, checked, hook.url(host="receiver.example"))).status == 204


async def test_private_hosts_are_allowed_by_their_exact_name_their_address_or_their_network() -> None:
    allowed = guard(Names(["10.1.2.3"]), allow_private_hosts=["intranet", "10.9.0.0/16", "192.168.7.7", "fd00::/64"])
    assert await allowed.addresses("intranet")
    assert await allowed.addresses("INTRANET.")
    for literal in ("10.9.8.7", "192.168.7.7", "fd00::5", "::ffff:10.9.8.7"):
        assert await allowed.addresses(literal)
    for other in ("other", "sub.intranet", "10.8.0.1", "192.168.7.8", "fd00:1::5", "127.0.0.1"):
        with pytest.raises(UrlRefused):
            await allowed.addresses(other)


async def test_metadata_services_are_out_of_reach_whatever_is_allowed() -> None:
    everything = ["metadata", "0.0.0.0/0", "::/0"]
    for address in (
        "169.254.169.254",
        "fd00:ec2::254",
        "fe80::1",
        "0.0.0.0",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::",
    ):
        with pytest.raises(UrlRefused):
            await guard(Names([address]), allow_private_hosts=everything).addresses("metadata")
        with pytest.raises(UrlRefused):
            await guard(allow_private_hosts=everything).addresses(address)


def test_with_a_list_of_hosts_no_other_is_reached() -> None:
    listed = guard(allow_hosts=["Hooks.example.com", "*.example.org"], allow_private_hosts=["intranet", "10.0.0.0/8"])
    for host in ("hooks.example.com", "HOOKS.example.com.", "a.example.org", "a.b.example.org", "intranet", "10.1.1.1"):
        listed.check(f"https://{host}/")
    for host in (
        "example.com",
        "x.hooks.example.com",
        "example.org",
        "evilexample.org",
        "8.8.8.8",
        "hooks.example.com.x",
    ):
        with pytest.raises(UrlRefused):
            listed.check(f"https://{host}/")


async def test_a_name_that_cannot_be_resolved_just_now_is_none_that_is_refused(outbounds: list[Outbound]) -> None:
    async def away(_: str) -> Sequence[str]:
        raise OSError("no answer")

    checked = guard(away)
    await checked.admit("https://example.com/")
    with pytest.raises(ExchangeFailed) as failed:
        await ask(outbounds, checked, "http://example.com/")
    assert "example.com" in failed.value.message


async def test_names_of_requests_that_come_are_looked_up_by_others(outbounds: list[Outbound]) -> None:
    """So those that nobody answers for are in no delivery's way."""
    connects, admits = Names(PUBLIC), Names(PUBLIC)
    checked = Guard(OutboundSettings(), connects, admits)
    await checked.admit("http://hooks.example/")
    assert (admits.asked, connects.asked) == (["hooks.example"], [])
    await checked.addresses("hooks.example")
    assert (admits.asked, connects.asked) == (["hooks.example"], ["hooks.example"])


async def test_a_redirect_is_an_answer_like_any_other(outbounds: list[Outbound]) -> None:
    async def elsewhere(_: Message) -> Reply:
        return 307, {"Location": "http://169.254.169.254/"}, b""

    async with receiver(elsewhere) as hook:
        answer = await ask(outbounds, guard(allow_private_hosts=["127.0.0.1"]), hook.url())
    assert (answer.status, answer.headers["location"]) == (307, "http://169.254.169.254/")
    assert len(hook.messages) == 1


async def test_no_more_of_an_answer_is_read_than_was_asked_for(outbounds: list[Outbound]) -> None:
    async def much(_: Message) -> Reply:
        return 200, {"X-Long": "y" * 1000}, b"x" * 10_000_000

    async with receiver(much) as hook:
        answer = await ask(outbounds, guard(allow_private_hosts=["127.0.0.1"]), hook.url())
        assert (answer.body, answer.whole) == (b"x" * 100, False)


async def test_a_receiver_that_does_not_answer_is_given_up(outbounds: list[Outbound]) -> None:
    async def never(_: Message) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async with receiver(never) as hook:
        with pytest.raises(ExchangeFailed) as failed:
            await ask(outbounds, guard(allow_private_hosts=["127.0.0.1"]), hook.url(), timeout=0.2)
        assert "did not answer within 0.2 s" in failed.value.message


async def test_what_is_no_http_or_a_closed_port_is_a_failed_exchange(outbounds: list[Outbound], hook: Receiver) -> None:
    checked = guard(allow_private_hosts=["127.0.0.1"])

    async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"garbage\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(garbage, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ExchangeFailed):
            await ask(outbounds, checked, f"http://127.0.0.1:{port}/")
    await hook.close()
    with pytest.raises(ExchangeFailed):
        await ask(outbounds, checked, hook.url())


async def test_proxies_of_the_environment_are_not_used(
    hook: Receiver, outbounds: list[Outbound], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await ask(outbounds, guard(allow_private_hosts=["127.0.0.1"]), hook.url())).status == 204


async def test_tls_still_verifies_the_name_and_not_the_address(outbounds: list[Outbound]) -> None:
    names: list[str | None] = []

    def asked(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        names.append(name)
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = asked

    async def nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(nothing, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        checked = guard(Names(["127.0.0.1"]), allow_private_hosts=["receiver.example"])
        with pytest.raises(ExchangeFailed):
            await ask(outbounds, checked, f"https://receiver.example:{port}/")
    assert names == ["receiver.example"]


async def test_a_server_that_ends_tls_after_its_handshake_is_a_failed_exchange(
    outbounds: list[Outbound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of TLS 1.3 does that wants a certificate of the client's."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    await _make_certificate(key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def serve(listener: socket.socket) -> None:
        # Not asyncio's, which cuts the connection without a word.
        connection = listener.accept()[0]
        connection.settimeout(10)
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
            with pytest.raises(ssl.SSLError):
                tls.do_handshake()
            while socket.socket.recv(tls, 4096):
                """The client may say all it wants: it hears the alert, and no reset."""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve, listener))
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(ExchangeFailed, match="could not be asked"):
            await ask(outbounds, guard(allow_private_hosts=["127.0.0.1"]), url)
        await serving


async def _make_certificate(key: Path, certificate: Path) -> None:
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0


async def test_a_name_that_is_no_good_idna_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may resolve all the same; httpx decodes it only when it is asked for the host."""

    async def nothing(*_: Any, **__: Any) -> Answer:
        return Answer(404, {}, b"", True)

    outbound = Outbound(guard(), 4)
    monkeypatch.setattr(outbound, "exchange", nothing)
    with pytest.raises(ExchangeFailed, match=r"xn--a\.example\.com answered 404"):
        await fetch(outbound, "http://xn--a.example.com/a.png", 1000)


@pytest.mark.parametrize(
    "location", ["x:////:]\x85", "http:////:1a]/", "http://[", "//a:b:c/", "http://\u2100.example/"]
)
async def test_a_redirect_to_what_is_no_url_is_a_failed_exchange(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of it is an InvalidURL to httpx: some fails in the standard library, with a ValueError."""

    async def elsewhere(*_: Any, **__: Any) -> Answer:
        return Answer(302, {"location": location}, b"", True)

    outbound = Outbound(guard(), 4)
    monkeypatch.setattr(outbound, "exchange", elsewhere)
    with pytest.raises((ExchangeFailed, UrlRefused)):
        await fetch(outbound, "http://example.com/a.png", 1000)

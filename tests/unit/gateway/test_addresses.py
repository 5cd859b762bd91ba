from ipaddress import ip_address

import pytest

from gateway.outbound.addresses import Reach, as_address, plain, reach

PUBLIC = """
    8.8.8.8 1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 169.253.255.255
    169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::200e 2400:cb00::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
"""
PRIVATE = """
    127.0.0.1 127.255.255.254 10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255
    100.64.0.1 100.127.255.255 192.0.0.1 192.0.2.1 198.51.100.7 203.0.113.9 192.88.99.1 198.18.0.1 198.19.255.255
    ::1 fc00::1 fd12:3456::1 2001:db8::1 3fff::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b::10.0.0.1
"""
NEVER = """
    0.0.0.0 0.1.2.3 169.254.169.254 169.254.0.1 169.254.170.2 100.100.100.200 192.0.0.192 168.63.129.16 224.0.0.1
    239.255.255.255 240.0.0.1 255.255.255.255 :: ::2 ::127.0.0.1 ::8.8.8.8 fe80::1 fec0::1 ff02::1 ff0e::1
    fd00:ec2::254 fd20:ce::254 ::ffff:169.254.169.254 ::ffff:0.0.0.0 64:ff9b::169.254.169.254 64:ff9b:1::1
    64:ff9b:1::a9fe:a9fe 2002:7f00:1:: 2002:a9fe:a9fe::1 2002:0808:0808::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
    2001:2::1 2001:20::1 100::1 5f00::1 4000::1 2600:1900::5efe:127.0.0.1 2600:1900::200:5efe:10.0.0.1
"""


@pytest.mark.parametrize("text", PUBLIC.split())
def test_what_everybody_can_reach_is_public(text: str) -> None:
    assert reach(ip_address(text)) is Reach.PUBLIC


@pytest.mark.parametrize("text", PRIVATE.split())
def test_what_is_of_a_network_or_a_machine_is_private_in_each_form(text: str) -> None:
    assert reach(ip_address(text)) is Reach.PRIVATE


@pytest.mark.parametrize("text", NEVER.split())
def test_metadata_multicast_and_what_leads_through_relays_is_never_reached(text: str) -> None:
    assert reach(ip_address(text)) is Reach.NEVER


@pytest.mark.parametrize("text", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "010.0.0.1", "fe80::1%eth0", "a.b"])
def test_an_address_that_is_written_in_another_way_is_none(text: str) -> None:
    assert as_address(text) is None


def test_an_address_is_compared_without_the_form_it_comes_in() -> None:
    assert plain(ip_address("::ffff:10.1.2.3")) == ip_address("10.1.2.3") == plain(ip_address("64:ff9b::10.1.2.3"))
    assert plain(ip_address("fd00::1")) == ip_address("fd00::1")

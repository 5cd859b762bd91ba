"""Which IP addresses are public, which are somebody's own, and which nothing that a client names may ever reach.

The blocks are those of IANA's registries of special-purpose addresses (RFC 6890), written out: what the ``ipaddress``
module takes for global differs between its versions, and it knows neither clouds nor what is inside of an address.
"""

import ipaddress
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address


class Reach(StrEnum):
    PUBLIC = "public"
    PRIVATE = "private"
    """Of somebody's own network or machine: only where an operator allows it."""
    NEVER = "never"


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, text.split()))


# "This network", link-local with the metadata services of most clouds, those that others have elsewhere (Alibaba,
# Oracle, Azure), multicast, and what is reserved or broadcast.
_NEVER_4 = _networks("0.0.0.0/8 169.254.0.0/16 100.100.100.200 192.0.0.192 168.63.129.16 224.0.0.0/4 240.0.0.0/4")
# Loopback, RFC 1918, carrier-grade NAT, protocol assignments, documentation, 6to4 relays, benchmarks.
_PRIVATE_4 = _networks(
    "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 192.0.0.0/24 192.0.2.0/24 198.51.100.0/24 "
    "203.0.113.0/24 192.88.99.0/24 198.18.0.0/15"
)
# Metadata services (AWS, Google), and what carries an IPv4 address to a relay: Teredo and others, 6to4, local NAT64.
_NEVER_6 = _networks("fd00:ec2::254 fd20:ce::254 2001::/23 2002::/16 64:ff9b:1::/48")
# Loopback, unique local, documentation.
_PRIVATE_6 = _networks("::1 fc00::/7 2001:db8::/32 3fff::/20")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def reach(address: Address) -> Reach:
    if isinstance(address, IPv4Address):
        if _in(address, _NEVER_4):
            return Reach.NEVER
        return Reach.PRIVATE if _in(address, _PRIVATE_4) else Reach.PUBLIC
    if (embedded := _embedded(address)) is not None:
        return reach(embedded)
    if _in(address, _NEVER_6) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return Reach.NEVER
    if _in(address, _PRIVATE_6):
        return Reach.PRIVATE
    return Reach.PUBLIC if address in _GLOBAL_UNICAST else Reach.NEVER


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that is reached by this one: mapped, or behind the NAT64 of a network without IPv4."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def _in(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def plain(address: Address) -> Address:
    """An IPv4 address in IPv6's clothes without them."""
    return (_embedded(address) or address) if isinstance(address, IPv6Address) else address


def as_address(text: str) -> Address | None:
    """An address written as it should be, without a zone; None for anything else."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None

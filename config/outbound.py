"""Which addresses that clients name the gateway may reach: none, unless this section says so."""

import ipaddress
import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from config.section import Section

Network: TypeAlias = IPv4Network | IPv6Network

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")


def as_network(entry: str) -> Network | None:
    """``10.0.0.5`` or ``10.0.0.0/8`` as a network; None for a host name."""
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        return None


def _host(text: str) -> str:
    name = text.strip().lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        """A name, then."""
    if not _NAME.fullmatch(name.removeprefix("*.")):
        raise PydanticCustomError("host", "expected a host name such as example.com, or *.example.com")
    return name


def _private_host(text: str) -> str:
    name = text.strip().lower().removesuffix(".")
    if as_network(name) is None and not (_NAME.fullmatch(name) and not name.rpartition(".")[2].isdecimal()):
        raise PydanticCustomError(
            "host", "expected a host name, an address, or a network such as 10.1.0.0/16 (without host bits)"
        )
    return name


_Text = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Host = Annotated[_Text, AfterValidator(_host)]
PrivateHost = Annotated[_Text, AfterValidator(_private_host)]


class OutboundSettings(Section):
    """Addresses that clients name, for the gateway to tell or to fetch from. Only public ones are ever reached, but for
    what `allow_private_hosts` says."""

    webhooks: bool = False
    """Whether a job may name an address that is told of its end."""
    images: bool = False
    """Whether the images of a chat may be given by http addresses, which the gateway then fetches."""
    allow_hosts: list[Host] = Field(default=[])
    """If not empty, only these hosts: `example.com`, or `*.example.com` for all below it."""
    allow_private_hosts: list[PrivateHost] = Field(default=[])
    """Hosts that may be reached although their addresses are private: exact names, addresses, or networks such as
    10.1.0.0/16. Link-local addresses, and with them the metadata services of clouds, stay out of reach."""

import pytest
from pydantic import ValidationError

from config.outbound import OutboundSettings


def test_nothing_is_allowed_unless_it_is_said() -> None:
    outbound = OutboundSettings()
    assert (outbound.webhooks, outbound.images) == (False, False)
    assert (outbound.allow_hosts, outbound.allow_private_hosts) == ([], [])


def test_hosts_are_compared_as_names_are() -> None:
    outbound = OutboundSettings.model_validate(
        {
            "allow_hosts": ["Hooks.Example.com.", "*.example.org", "8.8.8.8"],
            "allow_private_hosts": ["Intranet", "10.1.0.0/16", "fd00::1"],
        }
    )
    assert outbound.allow_hosts == ["hooks.example.com", "*.example.org", "8.8.8.8"]
    assert outbound.allow_private_hosts == ["intranet", "10.1.0.0/16", "fd00::1"]


@pytest.mark.parametrize(
    "host", ["", "*", "a b", "https://example.com", "example.com/x", "a.*.com", "*example.com", "10.0.0.0/8", "a..b"]
)
def test_what_is_no_host_is_no_entry_of_the_list(host: str) -> None:
    with pytest.raises(ValidationError):
        OutboundSettings.model_validate({"allow_hosts": [host]})


@pytest.mark.parametrize(
    "host", ["", "*", "*.intranet", "10.1.2.3/16", "127.1", "2130706433", "10.0.0.0/33", "host:80", "a b"]
)
def test_what_is_neither_a_host_nor_a_network_is_no_private_host(host: str) -> None:
    with pytest.raises(ValidationError):
        OutboundSettings.model_validate({"allow_private_hosts": [host]})

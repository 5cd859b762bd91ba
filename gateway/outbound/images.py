"""The images of a chat, which reach an engine as data: URLs and in no other way.

An engine that is given an address fetches it itself, from wherever it stands and whatever it may reach. So what a
client sends is one of two things: an image as a ``data:`` URL, which is looked at and written anew, or an http address,
which is fetched here, once, through ``gateway.outbound.guard``, if the configuration allows that. The job has the image
in it then: it is the same for each attempt, whatever the address answers later.
"""

import asyncio
import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from broker.media import sniff
from gateway.context import Context
from gateway.data_urls import decoded
from gateway.outbound.guard import Answer, ExchangeFailed, Outbound, UrlRefused

AT_ONCE = 32
"""Images that a gateway fetches at the same time."""
MOST = 8
"""Addresses in one request."""
REDIRECTS = 3
# Seconds, for all images of a request.
TIMEOUT = 20.0
_HEAD = 32
_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)
_REMOTE = re.compile(r"https?://", re.IGNORECASE)
_MOVED = frozenset({301, 302, 303, 307, 308})


def image_type(head: bytes) -> str | None:
    """The media type of an image that begins so, of those that models are shown."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    found = sniff(head)
    return found if found in _TYPES else None


def checked_url(url: str) -> str:
    """The URL as it may go on: an http address as it is, an image with the type that it has. Raises ValueError."""
    if _REMOTE.match(url):
        return url
    head = _DATA_URL.match(url[:1024])
    if head is None:
        raise ValueError("An image is a data: URL in base64, like data:image/png;base64,..., or an http(s) address")
    try:
        encoded, image = decoded(url[head.end() :])
    except ValueError:
        raise ValueError("The image in the data: URL is not valid base64") from None
    if (media_type := image_type(image[:_HEAD])) is None:
        raise ValueError("What is in the data: URL is no PNG, JPEG, WebP or GIF")
    return f"data:{media_type};base64,{encoded.decode()}"


def addresses(payload: Mapping[str, Any]) -> Iterator[str]:
    """What the messages have that is an address to be fetched, and no image."""
    for message in payload.get("messages", ()):
        if isinstance(message.get("content"), list):
            for part in message["content"]:
                if part["type"] == "image_url" and not part["image_url"]["url"].startswith("data:"):
                    yield part["image_url"]["url"]


def require_images(payload: Mapping[str, Any]) -> None:
    """Raises UrlRefused where an engine would have to fetch something."""
    if next(addresses(payload), None) is not None:
        raise UrlRefused("Addresses of images are not fetched here; send the image itself in a data: URL.")


async def with_images(gateway: Context, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """``payload`` with the images that its addresses lead to. Raises UrlRefused and ExchangeFailed."""
    wanted = list(dict.fromkeys(addresses(payload)))
    if not wanted:
        return payload
    if not gateway.settings.outbound.images:
        raise UrlRefused(
            "Addresses of images are not fetched here; send the image itself in a data: URL, or have an operator turn "
            "outbound.images on."
        )
    if len(wanted) > MOST:
        raise UrlRefused(f"A request may have {MOST} addresses of images at most, not {len(wanted)}.")
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await _fetch_all(gateway.images, wanted, gateway.settings.server.max_upload)
    except TimeoutError as error:
        raise ExchangeFailed(f"The images could not be fetched within {TIMEOUT:g} s.") from error
    return {**payload, "messages": [_shown(message, found) for message in payload["messages"]]}


async def _fetch_all(outbound: Outbound, urls: list[str], room: int) -> Mapping[str, str]:
    """URL → data: URL. One after the other, so that no more than ``room`` bytes are ever held."""
    found = {}
    for url in urls:
        image = await fetch(outbound, url, room)
        room -= len(image)
        # The bytes of our own choosing of type: what a server calls them counts for nothing.
        found[url] = f"data:{image_type(image[:_HEAD])};base64,{base64.b64encode(image).decode()}"
    return found


async def fetch(outbound: Outbound, address: str, most: int) -> bytes:
    """The image there, of ``most`` bytes at most. Raises UrlRefused and ExchangeFailed."""
    url = outbound.guard.check(address)
    for _ in range(REDIRECTS + 1):
        answer = await outbound.exchange("GET", url, {"Accept": "image/*"}, None, timeout=TIMEOUT, most=most)
        if answer.status not in _MOVED or "location" not in answer.headers:
            return _image(url, answer, most)
        try:
            url = outbound.guard.check(str(url.join(answer.headers["location"])))
        except (httpx.InvalidURL, ValueError) as error:  # the latter of the standard library's urljoin
            raise ExchangeFailed(f"{_host(url)} leads to what is no URL.") from error
    raise ExchangeFailed(f"{address[:200]} leads on more than {REDIRECTS} times.")


def _host(url: httpx.URL) -> str:
    """As it was asked: httpx's own ``host`` fails for a name that is no good IDNA."""
    return url.raw_host.decode("ascii")


def _image(url: httpx.URL, answer: Answer, most: int) -> bytes:
    if answer.status != 200:
        raise ExchangeFailed(f"The image could not be fetched: {_host(url)} answered {answer.status}.")
    if not answer.whole:
        raise ExchangeFailed(f"The image at {_host(url)}, with those before it, is longer than {most} bytes.")
    if image_type(answer.body[:_HEAD]) is None:
        raise ExchangeFailed(f"What {_host(url)} sent is no PNG, JPEG, WebP or GIF.")
    return answer.body


def _shown(message: Mapping[str, Any], found: Mapping[str, str]) -> Mapping[str, Any]:
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_part(part, found) for part in message["content"]]}


def _part(part: Mapping[str, Any], found: Mapping[str, str]) -> Mapping[str, Any]:
    if part["type"] != "image_url":
        return part
    image = part["image_url"]
    return {**part, "image_url": {**image, "url": found.get(image["url"], image["url"])}}

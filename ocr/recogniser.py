"""The protocol of what turns a picture of a page into text."""

from typing import Protocol

from ocr.page import Reading
from ocr.protocol import Page


class Recogniser(Protocol):
    """Made for one document. Pages of it may be recognised at the same time."""

    name: str
    """The engine that is named in the page's record."""
    page_side: int | None
    """Pixels of the longer side to which pages are reduced before it is given them; None: as they are drawn."""
    wants_straight: bool
    """Whether it makes use of `Page.straight`."""

    async def recognise(self, page: Page, attempt: int) -> Reading:
        """Reads a page that `ocr.decoder` drew. `attempt` counts the tries of this page from 1: a recogniser that can
        read in several ways reads the second time in another way.

        Raises `RecogniserError` for what lies in the page, with the best `partial` reading: it is tried again unless
        the error is permanent. Whatever else is raised ends the reading of the document. Files beside the page's may
        be written, and are removed. Cancelled, it leaves nothing running.
        """

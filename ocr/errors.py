"""What can go wrong between a document's bytes and its text.

    RoundhouseError
    └── OcrError
        ├── DocumentError               the input is at fault, or its decoder is
        │   ├── UnsupportedDocument     unsupported_document   a media type that is not read
        │   ├── UnreadableDocument      unreadable_document    not what its media type says, or damaged
        │   ├── TruncatedDocument       truncated_document     its end is missing
        │   ├── EncryptedDocument       encrypted_document     opens only with a password
        │   ├── NoPages                 no_pages
        │   ├── TooManyPages            too_many_pages
        │   ├── NoSuchPage              no_such_page           pages were asked for that it does not have
        │   ├── ImageTooLarge           image_too_large        more pixels than are decoded
        │   ├── DocumentTooLarge        document_too_large     needs more memory or disk than it may use
        │   ├── DecodeTimeout           decode_timeout
        │   └── DecoderCrashed          decoder_crashed        died of a signal, which is named
        ├── RecogniserError             recogniser_failed
        │   ├── PageLooped              page_looped            a model that said the same again and again
        │   ├── RecogniserTimeout       recogniser_timeout
        │   ├── RecogniserCrashed       recogniser_crashed     died of a signal, which is named
        │   └── LanguageMissing         language_not_installed
        └── ToolMissing                 tool_missing           Tesseract or poppler is not installed

``permanent`` tells whether another attempt must end the same way. It is what the class says, unless the
one who raises knows better: a decoder that used up its processor time is permanent, one that only waited
too long on a busy machine is not.
"""

from typing import ClassVar

from config.errors import RoundhouseError
from ocr.page import Reading
from ocr.protocol import Refusal


class OcrError(RoundhouseError):
    """Any failure to turn a document into text."""

    code: ClassVar[str] = "ocr_failed"
    permanent: bool = False


class DocumentError(OcrError):
    """The document cannot be decoded. ``details["page"]`` names the page (from 1) where one is to blame."""

    permanent = True


class UnsupportedDocument(DocumentError):
    code = "unsupported_document"


class UnreadableDocument(DocumentError):
    code = "unreadable_document"


class TruncatedDocument(DocumentError):
    code = "truncated_document"


class EncryptedDocument(DocumentError):
    code = "encrypted_document"


class NoPages(DocumentError):
    code = "no_pages"


class TooManyPages(DocumentError):
    code = "too_many_pages"


class NoSuchPage(DocumentError):
    """``details["pages"]`` is how many there are."""

    code = "no_such_page"


class ImageTooLarge(DocumentError):
    code = "image_too_large"


class DocumentTooLarge(DocumentError):
    code = "document_too_large"


class DecodeTimeout(DocumentError):
    """``details["limit"]`` is the limit in seconds; ``details["clock"]`` is ``cpu`` or ``wall``."""

    code = "decode_timeout"


class DecoderCrashed(DocumentError):
    """``details["signal"]`` names the signal, or ``details["status"]`` gives the exit status."""

    code = "decoder_crashed"


class RecogniserError(OcrError):
    """`partial` is what was read before it went wrong, where that is of use."""

    code = "recogniser_failed"
    partial: Reading | None = None


class PageLooped(RecogniserError):
    code = "page_looped"


class RecogniserTimeout(RecogniserError):
    code = "recogniser_timeout"


class RecogniserCrashed(RecogniserError):
    code = "recogniser_crashed"


class LanguageMissing(RecogniserError):
    """``details["missing"]`` and ``details["installed"]`` are lists of Tesseract language names."""

    code = "language_not_installed"
    permanent = True


class ToolMissing(OcrError):
    """``details["tool"]`` is the program that is not on PATH. Another machine may have it: not permanent."""

    code = "tool_missing"


DECODER_ERRORS: dict[str, type[OcrError]] = {
    error.code: error
    for error in (
        UnsupportedDocument,
        UnreadableDocument,
        TruncatedDocument,
        EncryptedDocument,
        NoPages,
        TooManyPages,
        NoSuchPage,
        ImageTooLarge,
        DocumentTooLarge,
        DecodeTimeout,
        DecoderCrashed,
        ToolMissing,
    )
}


def document_error(refusal: Refusal) -> OcrError:
    """The error that stands for what the decoder said."""
    error = DECODER_ERRORS[refusal.code](refusal.message, **refusal.details)
    error.permanent = refusal.permanent
    return error

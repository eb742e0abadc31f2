"""Cursors: opaque to whoever holds them, and authenticated, so that one that was never given is refused."""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b

from engine.domain.errors import MiaocangError

_SEAL_BYTES = 12
_CURSOR_LENGTH_MAX = 256


class InvalidCursor(MiaocangError):
    """The cursor was never given here."""


class CursorSeal:
    """Makes cursors of one kind, and takes them apart again. A cursor of another kind is refused like a forged one."""

    def __init__(self, secret: bytes, kind: bytes) -> None:
        self._secret = secret
        self._kind = kind

    def seal(self, payload: bytes) -> str:
        """The cursor that stands for `payload`; always the same one."""
        return urlsafe_b64encode(payload + self._tag(payload)).rstrip(b"=").decode()

    def unseal(self, cursor: str) -> bytes:
        """The payload that a cursor stands for. Raises InvalidCursor."""
        if len(cursor) > _CURSOR_LENGTH_MAX or not cursor.isascii():
            raise InvalidCursor("not a cursor")
        try:
            content = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (Base64Error, ValueError) as error:
            raise InvalidCursor("not a cursor") from error
        payload, tag = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
        if not hmac.compare_digest(tag, self._tag(payload)) or self.seal(payload) != cursor:
            raise InvalidCursor("this cursor was never given")
        return payload

    def _tag(self, payload: bytes) -> bytes:
        return blake2b(payload, digest_size=_SEAL_BYTES, key=self._secret, person=self._kind).digest()

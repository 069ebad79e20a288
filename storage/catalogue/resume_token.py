r"""Resume tokens: a stream and how far a receiver got with it, for `cenote send --resume`.

`1.` and base64 (RFC 4648, section 5, without padding) of 44 bytes, little-endian:

    offset  size  field     meaning
         0    16  snapshot  its identity, as in the header of the stream
        16    16  base      as there, or zeros
        32     8  position  u64, everything before this offset is durable
        40     4  check     low half of xxh3_64 of bytes 0..39
"""

import base64
import binascii
import struct
from dataclasses import dataclass
from uuid import UUID

from storage.catalogue.records import UNKNOWN, VolumeRecord
from storage.errors import InvalidArgumentError
from storage.format.codec import digest_of
from storage.format.entry import BLOCK_BYTES

_TOKEN = struct.Struct("<16s16sQ")


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """A stream, by its snapshot and base, and the byte offset up to which it durably arrived."""

    snapshot: UUID
    base: UUID | None
    position: int

    def __str__(self) -> str:
        base = UNKNOWN if self.base is None else self.base
        body = _TOKEN.pack(self.snapshot.bytes, base.bytes, self.position)
        body += (digest_of(body) & 0xFFFFFFFF).to_bytes(4, "little")
        return "1." + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "ResumeToken":
        """The inverse of `str`. Raises InvalidArgumentError if the text is no token."""
        version, _, coded = text.partition(".")
        try:
            body = base64.b64decode(coded + "=" * (-len(coded) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            body = b""
        fields, check = body[:-4], body[-4:]
        good = version == "1" and len(fields) == _TOKEN.size
        good = good and not int.from_bytes(fields[-8:], "little") % BLOCK_BYTES
        if not good or (digest_of(fields) & 0xFFFFFFFF).to_bytes(4, "little") != check:
            raise InvalidArgumentError(
                f"not a token of an interrupted receive: {text[:100]!r}; copy it whole, or ask "
                "for it again: cenote receive VOL --token"
            )
        snapshot, base, position = _TOKEN.unpack(fields)
        origin = None if base == UNKNOWN.bytes else UUID(bytes=base)
        return cls(UUID(bytes=snapshot), origin, position)


def token_of(record: VolumeRecord) -> ResumeToken:
    """Return the token of a volume that a snapshot is being received into."""
    arrival = record.arrival
    assert arrival is not None
    base = None if arrival.base == UNKNOWN else arrival.base
    return ResumeToken(arrival.identity, base, arrival.position)

"""Messages between the parties: canonical JSON, chained by hashes, read with suspicion.

    {"protocol", "session", "number", "kind", "previous", "body", "digest"}

``previous`` is the digest of the message before it (of either party), ``digest`` the SHA-256 of everything else, so a
message that is damaged, out of order, or from another session is refused. The digests are not signatures: somebody
between the parties who recomputes them can put words into the prover's mouth, as a lying prover can. What he says is
then judged like any prover's. Whoever must tell the two apart sends the messages over an authenticated channel.

Everything here is our choice; the text fixes only what the parties learn.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np

PROTOCOL = "verifiable-attribution/2"
KINDS = ("open", "claim", "commit", "queries", "answer", "verdict")
LARGEST = 256 * 2**20  # bytes of one message
DTYPES = {"<f8": np.dtype("<f8"), "<i8": np.dtype("<i8"), "|u1": np.dtype("|u1")}
FIELDS = {"protocol": str, "session": str, "number": int, "kind": str, "previous": str, "body": dict, "digest": str}


class ProtocolError(ValueError):
    """The other party's message cannot be used; the text is the reason of the abort."""


@dataclass(frozen=True)
class Message:
    """One message; ``number`` counts those of both parties from 0, ``digest`` is what the next one must name."""

    session: str
    number: int
    kind: str
    previous: str
    body: dict
    digest: str


def canonical(content) -> bytes:
    """JSON with sorted keys, no spaces, no NaN: equal content, equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def encode(session: str, number: int, kind: str, previous: str, body: dict) -> tuple[bytes, str]:
    """``(bytes, digest)`` of a message."""
    content = {"protocol": PROTOCOL, "session": session, "number": number, "kind": kind, "previous": previous}
    content["body"] = body
    digest = sha256(canonical(content))
    return canonical(content | {"digest": digest}), digest


def decode(raw: bytes) -> Message:
    """The message of ``raw``. Raises :class:`ProtocolError` for anything but bytes that :func:`encode` makes."""
    if not isinstance(raw, bytes | bytearray) or len(raw) > LARGEST:
        raise ProtocolError(f"a message is at most {LARGEST} bytes; this is {type(raw).__name__}, or longer")
    try:
        content = json.loads(bytes(raw).decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ProtocolError(f"not a JSON message ({str(error)[:80]})") from None
    if not isinstance(content, dict) or set(content) != set(FIELDS):
        raise ProtocolError(f"a message has exactly the fields {sorted(FIELDS)}")
    for name, kind in FIELDS.items():
        if type(content[name]) is not kind:
            raise ProtocolError(f"field {name!r} must be of type {kind.__name__}")
    digest = content.pop("digest")
    if content["protocol"] != PROTOCOL or content["kind"] not in KINDS:
        raise ProtocolError(f"protocol {content['protocol'][:40]!r}, kind {content['kind'][:40]!r} are not known here")
    try:
        expected = sha256(canonical(content))
    except (ValueError, RecursionError):  # lone surrogates, numbers too long to write
        raise ProtocolError("the content cannot be written in canonical form") from None
    if digest != expected:
        raise ProtocolError("the digest does not fit the content: damaged or tampered with")
    if canonical(content | {"digest": digest}) != raw:
        raise ProtocolError("the message is not in canonical form: one content has one spelling")
    del content["protocol"]
    return Message(**content, digest=digest)


def _unique(pairs: list[tuple]) -> dict:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def _no_constant(name: str):
    raise ValueError(f"{name} is no number")


class Party:
    """One side of a session: counts the messages of both sides, and knows the last one and what kind is ``due``."""

    session, last, number, due = "", "", 0, "nothing"

    def _read(self, message: Message) -> dict:
        """The body of the message, if it is the one that is due. Raises :class:`ProtocolError` otherwise."""
        if message.session != self.session:
            raise ProtocolError("the message belongs to another session: replayed or misdirected")
        if (message.number, message.kind) != (self.number, self.due):
            raise ProtocolError(
                f"message {self.number} ({self.due}) is due, this is {message.number} ({message.kind}): reordered or "
                f"replayed"
            )
        if message.previous != self.last:
            raise ProtocolError("the message does not follow the one before it: the parties saw different messages")
        self.last, self.number = message.digest, self.number + 1
        return message.body

    def _send(self, kind: str, body: dict, due: str) -> bytes:
        raw, self.last = encode(self.session, self.number, kind, self.last, body)
        self.number, self.due = self.number + 1, due
        return raw


def keys(body: dict, *names: str) -> dict:
    """``body`` if it has exactly these keys."""
    if set(body) != set(names):
        raise ProtocolError(f"the body must have exactly the keys {sorted(names)}")
    return body


def hexadecimal(value, what: str) -> str:
    """``value`` if it is 64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ProtocolError(f"{what} must be 64 hexadecimal digits")
    return value


def pack(array: np.ndarray) -> dict:
    """An array as JSON: float64, int64 or uint8 as base64, booleans as packed bits."""
    array = np.asarray(array)
    kind = {"b": "bits", "f": "<f8", "i": "<i8", "u": "|u1"}[array.dtype.kind]
    raw = np.packbits(array).tobytes() if kind == "bits" else np.ascontiguousarray(array, DTYPES[kind]).tobytes()
    return {"dtype": kind, "shape": list(array.shape), "data": base64.b64encode(raw).decode()}


def unpack(value, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The array of :func:`pack`, of this dtype and shape. Raises :class:`ProtocolError`, also for NaN and
    infinities.
    """
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data"}:
        raise ProtocolError(f"{what} is not an array of the form dtype, shape, data")
    given = value["shape"]
    if value["dtype"] != dtype or not isinstance(given, list) or any(type(side) is not int for side in given):
        raise ProtocolError(f"{what} must be of dtype {dtype!r}, with a list of integers as its shape")
    if tuple(given) != tuple(shape):
        raise ProtocolError(f"{what} must have shape {list(shape)}, not {str(given)[:60]}")
    try:
        raw = base64.b64decode(value["data"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ProtocolError(f"{what} is not base64") from None
    count = math.prod(shape)
    if len(raw) != (-(-count // 8) if dtype == "bits" else count * DTYPES[dtype].itemsize):
        raise ProtocolError(f"{what} has {len(raw)} bytes, too few or too many for shape {list(shape)}")
    if dtype == "bits":
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool).reshape(shape)
    array = np.frombuffer(raw, DTYPES[dtype]).reshape(shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError(f"{what} holds NaN or infinite numbers")
    return array

"""The verifier's randomness: everything from one secret, each use under its own label."""

from __future__ import annotations

import functools
import hashlib
import secrets

import numpy as np

from tda.verification.statement import Statement
from tda.verification.subsets import draw, partners


class Coins:
    """Subsets, seeds and places to check of one session with ``n`` examples.

    Each use hashes the ``secret`` (32 bytes, drawn unless given) with its own label, so that the subsets that are
    sent do not tell which of them are checked, although the generator behind them is not a cryptographic one. The
    secret is used once: the verdict reveals it, and anybody can replay the decision.
    """

    def __init__(self, statement: Statement, n: int, secret: bytes | None = None):
        self.statement, self.n = statement, n
        self.secret = secrets.token_bytes(32) if secret is None else secret
        if not isinstance(self.secret, bytes) or len(self.secret) != 32:
            raise ValueError("secret must be 32 bytes; leave it out to draw one.")

    @property
    def promise(self) -> str:
        """What is published before anything is claimed: the verifier cannot change its coins afterwards."""
        return hashlib.sha256(self.secret).hexdigest()

    @property
    def session(self) -> str:
        """Names the session."""
        return hashlib.sha256(self._key("session")).hexdigest()

    @functools.cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """4 n subsets [4 n, N] (bases, then their partners of correlation 0, rho and 2 rho) and their seeds."""
        s, rng = self.statement, self._random("pairs")
        bases = draw(rng, s.bases, self.n, s.p)
        others = partners(rng, bases, s.p, (0.0, s.rho, 2 * s.rho))
        return np.concatenate([bases[None], others]).reshape(-1, self.n), self._seeds(rng, 4 * s.bases)

    @functools.cached_property
    def fresh(self) -> tuple[np.ndarray, np.ndarray]:
        """The subsets on which the verifier measures the claim, and their seeds."""
        rng = self._random("fresh")
        return draw(rng, self.statement.fresh, self.n, self.statement.p), self._seeds(rng, self.statement.fresh)

    @property
    def checks(self) -> np.ndarray:
        """Places among the pairs that are retrained, all different."""
        return self._random("checks").choice(4 * self.statement.bases, self.statement.checks, replace=False)

    def _key(self, label: str) -> bytes:
        return hashlib.sha256(self.secret + label.encode()).digest()

    def _random(self, label: str) -> np.random.Generator:
        return np.random.default_rng(int.from_bytes(self._key(label), "big"))

    def _seeds(self, rng: np.random.Generator, count: int) -> np.ndarray:
        one = self.statement.seeding == "one"
        return np.full(count, self.statement.seed) if one else rng.integers(0, 2**31, count)

"""Merkle trees as certificate transparency has them (RFC 9162, section 2.1), over hashes of leaves."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

SIZE = 32

#: The root of a tree without leaves.
EMPTY = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf. Its prefix is not a node's, so that no node passes for a leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(children: bytes) -> bytes:
    """Return the hash of a node; `children` is the left one's hash and the right one's."""
    return sha256(b"\x01" + children).digest()


def levels(leaves: bytes) -> Iterator[bytes]:
    """Yield each level of the tree over the hashes that `leaves` is made of, leaves first, the root alone at last.

    A node without a sibling rises as it is. The tree is the same as that of RFC 9162, which divides from the top.
    """
    level = leaves
    yield level
    while len(level) > SIZE:
        paired = len(level) - len(level) % (2 * SIZE)
        nodes = [node_hash(level[at : at + 2 * SIZE]) for at in range(0, paired, 2 * SIZE)]
        level = b"".join((*nodes, level[paired:]))
        yield level


def root(leaves: bytes) -> bytes:
    """Return the root of the tree over the hashes that `leaves` is made of."""
    last = EMPTY
    for level in levels(leaves):
        last = level or EMPTY
    return last


def inclusion(index: int, leaves: bytes) -> list[bytes]:
    """Return the path from a leaf to the root (RFC 9162, 2.1.3.1): the siblings on the way up."""
    path = []
    for level in levels(leaves):
        sibling = index ^ 1
        if sibling * SIZE < len(level):
            path.append(level[sibling * SIZE : (sibling + 1) * SIZE])
        index >>= 1
    return path


def consistency(first: int, leaves: bytes) -> list[bytes]:
    """Return the proof that the tree of the first leaves, at least one, is the beginning of the whole (RFC 9162, 2.1.4.1)."""
    path: list[bytes] = []
    is_whole = True
    while first * SIZE < len(leaves):
        half = SIZE << ((len(leaves) // SIZE - 1).bit_length() - 1)
        if first * SIZE <= half:
            path.append(root(leaves[half:]))
            leaves = leaves[:half]
        else:
            path.append(root(leaves[:half]))
            leaves = leaves[half:]
            first -= half // SIZE
            is_whole = False
    return path[::-1] if is_whole else [root(leaves), *path[::-1]]


class Growing:
    """A tree to which leaves are added, and whose root can be asked for at any time."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # the roots of the perfect trees that it consists of, largest first

    def add(self, leaf: bytes) -> None:
        """Add the hash of a leaf."""
        peak, rest = leaf, self.size
        while rest & 1:
            peak = node_hash(self._peaks.pop() + peak)
            rest >>= 1
        self._peaks.append(peak)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree as it is now."""
        if not self._peaks:
            return EMPTY
        *left, whole = self._peaks
        for peak in reversed(left):
            whole = node_hash(peak + whole)
        return whole

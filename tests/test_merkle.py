"""AUD-09: trees and proofs as certificate transparency has them. The vectors are those of its reference implementation."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

import pytest

import verify_audit_proof as verifier
from pg_llm import merkle

DATA = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
LEAVES = [merkle.leaf_hash(bytes.fromhex(data)) for data in DATA]

ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
INCLUSION = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
}
CONSISTENCY = {
    (1, 8): INCLUSION[0, 8],
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}

#: Enough for every shape of tree up to five levels.
MANY = [merkle.leaf_hash(str(number).encode()) for number in range(33)]


def test_aud_09_roots_of_none_to_eight_leaves() -> None:
    """AUD-09"""
    assert [merkle.root(b"".join(LEAVES[:size])).hex() for size in range(9)] == list(ROOTS)


def test_aud_09_a_growing_tree_has_the_same_roots() -> None:
    """AUD-09"""
    tree = merkle.Growing()
    roots = [tree.root().hex()]
    for leaf in LEAVES:
        tree.add(leaf)
        roots.append(tree.root().hex())
    assert roots == list(ROOTS)


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_aud_09_paths_of_inclusion(index: int, size: int) -> None:
    """AUD-09"""
    path = merkle.inclusion(index, b"".join(LEAVES[:size]))
    assert tuple(node.hex() for node in path) == INCLUSION[index, size]


@pytest.mark.parametrize(("first", "size"), CONSISTENCY)
def test_aud_09_paths_of_consistency(first: int, size: int) -> None:
    """AUD-09"""
    path = merkle.consistency(first, b"".join(LEAVES[:size]))
    assert tuple(node.hex() for node in path) == CONSISTENCY[first, size]


def test_every_leaf_leads_to_the_root_and_no_other_leaf_does() -> None:
    for size in range(1, len(MANY) + 1):
        leaves = b"".join(MANY[:size])
        root = merkle.root(leaves)
        for index in range(size):
            path = merkle.inclusion(index, leaves)
            assert verifier.root_by_inclusion(index, size, MANY[index], path) == root
            assert verifier.root_by_inclusion(index, size, sha256(b"other").digest(), path) != root
            for wrong in (path[:-1] if path else [root], [*path, root], [bytes(32), *path[1:]] if path else [root] * 2):
                with suppress(verifier.Refused):
                    assert verifier.root_by_inclusion(index, size, MANY[index], wrong) != root


def test_every_beginning_is_shown_to_be_one_and_nothing_else_is() -> None:
    for size in range(1, len(MANY) + 1):
        leaves = b"".join(MANY[:size])
        for first in range(1, size + 1):
            old, path = merkle.root(b"".join(MANY[:first])), merkle.consistency(first, leaves)
            verifier.check_growth(first, old, size, merkle.root(leaves), path)
            forged = merkle.root(b"".join([bytes(32), *MANY[1:first]]))
            for first_root, last_root, way in (
                (forged, merkle.root(leaves), path),
                (old, forged, path),
                (old, merkle.root(leaves), [*path, old]),
                (old, merkle.root(leaves), path[:-1] if path else [old]),
            ):
                with pytest.raises(verifier.Refused):
                    verifier.check_growth(first, first_root, size, last_root, way)


def test_aud_09_a_node_does_not_pass_for_a_leaf() -> None:
    """AUD-09: with equal prefixes the tree over two leaves would have the root of a tree over their concatenation (second preimage)."""
    pair = LEAVES[0] + LEAVES[1]
    assert merkle.root(pair) == merkle.node_hash(pair) != merkle.leaf_hash(pair)
    with pytest.raises(verifier.Refused):
        verifier.root_by_inclusion(2, 2, LEAVES[0], [])

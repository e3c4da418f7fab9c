"""Globs, as Redis matches them."""

from __future__ import annotations

import time

import pytest

from waterspout_core._glob import compile_glob

MATCHES = [
    ("*", ""), ("*", "anything"), ("h?llo", "hello"), ("h*llo", "hllo"), ("h*llo", "heeeello"), ("a**b", "ab"),
    ("h[ae]llo", "hallo"), ("h[a-e]llo", "hcllo"), ("h[e-a]llo", "hcllo"), ("h[^e]llo", "hallo"), ("a.b", "a.b"),
    (r"a\*b", "a*b"), (r"a[\]]b", "a]b"), ("a[bc", "ab"), ("??", "ü"), ("news.*", "news.a.b"), ("a\\", "a\\"),
    ("x(y|z)", "x(y|z)"), ("[^]", "a"), ("line*", "line\nbreak"),
]  # fmt: skip
MISSES = [
    ("h?llo", "hllo"), ("h[ae]llo", "hillo"), ("h[^e]llo", "hello"), ("a.b", "axb"), (r"a\*b", "axb"), ("?", "ü"),
    ("abc", "ab"), ("ab", "abc"), ("[]", "a"), ("a[bc", "ad"), ("", "a"), ("A", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "name"), MATCHES)
def test_a_pattern_matches(pattern: str, name: str) -> None:
    assert compile_glob(pattern)(name)


@pytest.mark.parametrize(("pattern", "name"), MISSES)
def test_a_pattern_does_not_match(pattern: str, name: str) -> None:
    assert not compile_glob(pattern)(name)


def test_many_stars_take_no_time() -> None:
    before = time.process_time()
    assert not compile_glob("*.*.*.*.x")("." * 255)
    assert compile_glob("*.*.*.*.x")("." * 254 + "x")
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a*b*c", "a-b-b-c", True),
        ("*ab*ab", "ab", False),
        ("*ab*ab", "aab", False),
        ("*a?*?b", "xaxxb", True),
        ("*a?*?b", "axb", False),
        ("**a***[bc]**", "xaxcx", True),
        ("a*a", "a", False),
    ],
)
def test_what_is_between_stars_is_found_in_order_and_once(pattern: str, name: str, matches: bool) -> None:
    assert compile_glob(pattern)(name) is matches

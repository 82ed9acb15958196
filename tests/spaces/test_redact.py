"""Secrets in text: which are found, how they are marked, and that nothing else is touched."""

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.redact import redacted

ENVIRONMENT = {
    "HF_TOKEN": "hf_abcdefgh",
    "DATABASE_PASSWORD": "pa ss/word+1",
    "AWS_SECRET_ACCESS_KEY": "hf_abcdefghijkl",  # begins like another
    "SHORT_KEY": "1234567",
    "HOME": "/home/somebody",
    "SSH_AUTH_SOCK": sys.executable,
    "GIT_AUTHOR_NAME": "Some Body",
    "KEYBOARD_LAYOUT": "international",
    "NAMED_TOKEN": "DATABASE_PASSWORD",  # the name of another
    "PRIVATE_KEY": "BEGIN KEY\nabcdefghijklmnop\nEND",
}
CASES = {
    "a value": ("got hf_abcdefgh here", "got [HF_TOKEN] here"),
    "the longer of two": ("hf_abcdefghijkl", "[AWS_SECRET_ACCESS_KEY]"),
    "as an address writes it": ("?a=pa%20ss%2Fword%2B1", "?a=[DATABASE_PASSWORD]"),
    "a line of several": ("a abcdefghijklmnop b", "a [PRIVATE_KEY] b"),
    "several lines, shown": (repr(ENVIRONMENT["PRIVATE_KEY"]), "'[PRIVATE_KEY]'"),
    "a name in a mark": ("pa ss/word+1 DATABASE_PASSWORD", "[DATABASE_PASSWORD] [NAMED_TOKEN]"),
    "user and password": ("s3://me:secret@host/a", "s3://***@host/a"),
    "a token for a user": ("https://ghp_abc@host/a?b=1", "https://***@host/a?b=1"),
    "a parameter": ("https://host/a?x=1&access_token=abc&y=2", "https://host/a?x=1&access_token=***&y=2"),
    "a signature": ("https://host/a?X-Amz-Signature=abc.", "https://host/a?X-Amz-Signature=***"),
    "too short": ("1234567", "1234567"),
    "not named so": ("/home/somebody", "/home/somebody"),
    "a path that is there": (sys.executable, sys.executable),
    "an author": ("Some Body", "Some Body"),
    "a keyboard": ("international", "international"),
    "an address without secrets": ("https://host/a?page=1#b@c", "https://host/a?page=1#b@c"),
    "a mail address": ("somebody@host", "somebody@host"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_secret_is_replaced_by_its_mark(name: str) -> None:
    text, clean = CASES[name]
    assert redacted(text, ENVIRONMENT) == clean
    assert redacted(clean, ENVIRONMENT) == clean


@given(
    st.lists(
        st.sampled_from([*ENVIRONMENT, *ENVIRONMENT.values(), "://", "@", "?token=", "&", " ", "***", "[", "]", "a"])
    )
)
def test_redacting_twice_changes_nothing_more(parts: list[str]) -> None:
    once = redacted("".join(parts), ENVIRONMENT)
    assert redacted(once, ENVIRONMENT) == once
    assert "hf_abcdefgh" not in once


@given(st.text(), st.dictionaries(st.sampled_from(["A_KEY", "B_TOKEN", "C"]), st.text()))
def test_nothing_raises(text: str, environment: dict[str, str]) -> None:
    redacted(text, environment)


def test_what_cannot_be_shown_is_named() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    assert redacted(Broken()) == "a Broken that cannot be shown"


def test_it_reads_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_NEW_TOKEN", "value-of-now")
    assert redacted("a value-of-now") == "a [A_NEW_TOKEN]"


def test_it_is_cheap() -> None:
    text, environment = "a line of a log " * 1000, {f"KEY_{i}": f"value-number-{i}" for i in range(100)}
    started = time.perf_counter()
    for _ in range(20):
        redacted(text, environment)
    assert time.perf_counter() - started < 5

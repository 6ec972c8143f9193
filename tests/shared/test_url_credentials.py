"""What counts as credentials in a URL, and what only looks like it."""

import pytest

from llorch_shared.logs import redact
from llorch_shared.url_credentials import has_credentials

SECRET = "s3cr"


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cr@host/a",
        "https://s3cr@host/a",
        "https://user:@host/",
        "https://user:s3cr/et@host/a",
        "https://user:/s3cr@host/a",
        "https://user:s3cr?x#y@host/a",
        "https://user:12s3cr/et@host/a",
        "https://user:123456/s3cr@host/a",
        "https://us.er:s3cr\\et@host/a",
        "--index-url=https://user:s3cr/et@host/simple",
        "see https://host:8080/a and https://user:s3cr/et@host/",
        "git+ssh://user:s3cr/a/b/c@host:22/a@v1",
    ],
)
def test_who_asks_is_named_in_it(text: str) -> None:
    assert has_credentials(text)
    assert SECRET not in redact(f"fetches {text}")


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a@b",
        "https://host/@scope/package",
        "https://host:8080/@scope/package",
        "https://host:8080?who=a@b",
        "oci://host:5000/model@sha256:abc",
        "oci://host/model@sha256:abc",
        "https://[::1]:8080/a@b",
        "https://[::1]/a@b",
        "file:///C:/models/a@b.gguf",
        "http://host:8080 is asked by a@b",
        "a@b at https://host",
        "user:pass/word@host",
    ],
)
def test_nobody_is(text: str) -> None:
    assert not has_credentials(text)

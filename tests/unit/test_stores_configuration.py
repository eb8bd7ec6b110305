"""Where a repository may lie, as the configuration and the command line say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config import parse
from engine.failures import BadInput, Exit, verdict
from storage.errors import AccessRefused
from storage.places import ObjectPlace, check_endpoint, open_blobs, owner_file, parse_place

HERE = Path("/etc/backstay/backstay.toml")


def configured(repository: str) -> ObjectPlace | Path:
    return parse(f'schema = 1\nstate_dir = "/var/lib/backstay"\n[repository]\n{repository}', HERE).place


def test_an_object_store_is_configured_with_sources_of_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "AKIDEXAMPLE")
    monkeypatch.setenv("SECRET", "a very secret word")
    place = configured(
        'url = "s3://bucket/backups/main"\nendpoint = "https://s3.example.com"\nregion = "eu-1"\n'
        'access_key = "env:KEY"\nsecret_key = "env:SECRET"\nca_file = "store.pem"\n'
    )
    assert isinstance(place, ObjectPlace)
    assert (place.bucket, place.prefix, place.region) == ("bucket", "backups/main", "eu-1")
    assert place.ca_file == Path("/etc/backstay/store.pem")
    assert place.credentials() == {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "a very secret word"}
    assert "secret word" not in repr(place) and str(place) == "s3://bucket/backups/main"
    assert place.state_dir == Path("/var/lib/backstay")


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("", "write path ="),
        ('path = "a"\nurl = "s3://b"', "not both"),
        ('path = "a"\nregion = "x"', "leave them out"),
        ('url = "ftp://b"', "is not known"),
        ('url = "somewhere"', "is no url"),
        ('url = "s3://key:word@bucket"', "keys are configured"),
        ('url = "s3://"', "names no bucket"),
        ('url = "s3://bucket/a//b"', "empty or dotted"),
        ('url = "s3://bucket"\naccess_key = "env:A"', "belong together"),
        ('url = "s3://bucket"\naccount = "a"', "takes no account"),
        ('url = "gs://bucket"\naccess_key = "env:A"\nsecret_key = "env:B"', "takes no access_key"),
        ('url = "s3://bucket"\nendpoint = "http://s3.example.com"', "without TLS"),
        ('url = "s3://bucket"\nendpoint = "s3.example.com"', "https://host"),
    ],
)
def test_a_mistake_in_the_place_is_told_with_what_to_write(repository: str, said: str) -> None:
    with pytest.raises(BadInput, match="repository") as found:
        configured(repository)
    assert said in str(found.value)
    assert "word" not in str(found.value)


def test_http_is_for_this_machine_or_for_who_asks_for_it() -> None:
    check_endpoint("http://127.0.0.1:9000", allow_http=False)
    check_endpoint("http://localhost", allow_http=False)
    check_endpoint("http://s3.example.com", allow_http=True)
    assert configured('url = "s3://b"\nendpoint = "http://s3.example.com"\nallow_http = true')


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("s3://bucket/p", {"access_key_id": "k", "secret_access_key": "s", "session_token": "t"}),
        ("gs://bucket/p", {}),
        ("az://container/p", {"account_name": "a", "account_key": "a2V5"}),
        ("az://container", {"account_name": "a", "sas_key": "sv=2020&sig=x"}),
    ],
)
def test_every_kind_of_store_can_be_set_up(url: str, login: dict[str, str], tmp_path: Path) -> None:
    """GCS and Azure are set up, not asked: there is no server of theirs to test with."""
    if url.startswith("gs:"):
        login = {"service_account_key": service_account()}
    place = parse_place(url)
    assert isinstance(place, ObjectPlace)
    scheme, bucket, prefix = place.scheme, place.bucket, place.prefix
    assert open_blobs(ObjectPlace(scheme, bucket, prefix, credentials=lambda: login)).root == url


def test_settings_that_cannot_be_used_are_told_without_the_secret() -> None:
    place = ObjectPlace("gs", "bucket", credentials=lambda: {"service_account_key": "hunter2 is no JSON"})
    with pytest.raises(AccessRefused) as found:
        open_blobs(place)
    assert "hunter2" not in str(found.value)
    assert found.value.__cause__ is None
    assert verdict(found.value).exit_code is Exit.UNREACHABLE


def test_the_engine_that_has_a_store_open_is_found_by_its_place(tmp_path: Path) -> None:
    place = parse_place("s3://bucket/one", tmp_path)
    other = parse_place("s3://bucket/two", tmp_path)
    work = tmp_path / "catalogs" / ("ab" * 16)
    work.mkdir(parents=True)
    (work / "owner.json").write_text(json.dumps({"pid": 1, "place": "s3://bucket/one"}))
    assert owner_file(place) == work / "owner.json"
    assert not owner_file(other).exists()
    assert owner_file(tmp_path) == tmp_path / "owner.json"


def service_account() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return json.dumps(
        {
            "type": "service_account", "private_key": pem, "private_key_id": "1", "client_email": "a@b.example",
            "token_uri": "https://oauth2.example.com/token",
        }
    )  # fmt: skip


def test_an_engine_may_have_further_repositories_but_each_place_once() -> None:
    text = 'schema = 1\nstate_dir = "/var/lib/backstay"\nrepository.path = "a"\n[repositories.archive]\npath = '
    assert parse(text + '"b"', HERE).repositories["archive"].path == Path("/etc/backstay/b")
    with pytest.raises(BadInput, match=r"repository and repositories\.archive are one place"):
        parse(text + '"a"', HERE)


def test_one_place_by_two_ways_is_told_and_so_is_a_copy_that_would_be_the_repository_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    text = 'schema = 1\nrepository.path = "a"\n'
    for section, said in (
        (f'[repositories.b]\npath = "{tmp_path}/a"', "repository and repositories.b are one place"),
        ('[repositories.b]\npath = "x/../a/"', "repository and repositories.b are one place"),
        ('[repositories.b]\npath = "link"', "repository and repositories.b are one place"),
        ('[copies.c]\npath = "link"', "repository and copies.c are one place"),
        (
            '[repositories.b]\npath = "b"\n[copies.c]\npath = "b"',
            "repositories.b and copies.c are one place",
        ),
        (
            '[copies.c]\nurl = "s3://bucket/a"\n[copies.d]\nurl = "s3://bucket/a/"',
            "copies.c and copies.d are one place",
        ),
        ('[repositories.""]\npath = "b"', "repositories"),
        ('[copies."a b"]\npath = "b"', "copies"),
    ):
        with pytest.raises(BadInput, match=said):
            parse(text + section, tmp_path / "backstay.toml")

"""S3 Object Lock: versions that nobody, whatever key he holds, can remove before their time.

obstore has no such calls, so this is the one module that speaks through boto3 (the extra `object-lock`), and the one
in which its errors become ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from storage.errors import AccessRefused, Missing, Refused, StorageError, StoreFailed
from storage.places import CONNECT_SECONDS, READ_SECONDS, ObjectPlace, check_endpoint, endpoint_of

T = TypeVar("T")

EXTRA = "install Backstay with its extra: backstay[object-lock]"
NONE_YET = ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError")
"""What stores answer for an object that has no lock, or a bucket that can have none."""


class ObjectLocks:
    """The locks of one place. Thread-safe."""

    def __init__(self, place: ObjectPlace) -> None:
        if place.scheme != "s3":
            raise Refused("only S3 buckets have Object Lock", where=str(place))
        self._place = place
        self._client = _client(place)

    def check(self) -> None:
        """Refused unless objects of the bucket can be locked."""
        try:
            found = self._ask("bucket", partial(self._client.get_object_lock_configuration, Bucket=self._place.bucket))
        except (Missing, _NoLock):
            found = {}
        if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise Refused(
                "Object Lock is not on in this bucket",
                where=str(self._place),
                hint="it is switched on when a bucket is made; make another bucket, or set object_lock = false",
            )

    def until(self, key: str) -> datetime | None:
        """The end of a blob's lock; None when it has none. Missing when there is no such blob."""
        try:
            found = self._ask(key, partial(self._client.get_object_retention, **self._object(key)))
        except _NoLock:
            return None
        moment: datetime = found["Retention"]["RetainUntilDate"]
        return moment.astimezone(UTC)

    def extend(self, key: str, until: datetime) -> None:
        """Lock a blob at least up to a time; a longer lock stays. Missing when there is no such blob."""
        rounded = (until + timedelta(microseconds=999_999)).astimezone(UTC).replace(microsecond=0)
        lock = {"Mode": "COMPLIANCE", "RetainUntilDate": rounded}
        try:
            self._ask(key, partial(self._client.put_object_retention, **self._object(key), Retention=lock))
        except AccessRefused:
            known = self.until(key)
            if known is None or known < until:
                raise

    def _object(self, key: str) -> dict[str, str]:
        prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        return {"Bucket": self._place.bucket, "Key": prefix + key}

    def _ask(self, where: str, call: Callable[[], T]) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except ClientError as error:
            raise _told(error, where) from None
        except BotoCoreError as error:  # its text may repeat an address, never a key
            raise StoreFailed(f"the store did not answer about a lock: {type(error).__name__}", where=where) from None


class _NoLock(StorageError):
    """The blob has no lock."""


def _told(error: Any, where: str) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in NONE_YET:
        return _NoLock("it has no lock", where=where)
    if code in ("NoSuchKey", "NoSuchVersion", "NoSuchBucket") or status == 404:
        return Missing("this blob is missing", where=where)
    if status in (401, 403):
        return AccessRefused(
            f"the store refused to look at or change a lock: {code}",
            where=where,
            hint="the key needs s3:GetObjectRetention, s3:PutObjectRetention and s3:GetBucketObjectLockConfiguration",
        )
    return StoreFailed(f"the store refused a lock: {code or status}", where=where)


def _client(place: ObjectPlace) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise Refused("Object Lock needs boto3, which is not installed", where=str(place), hint=EXTRA) from None
    endpoint = place.endpoint or endpoint_of(place.scheme)
    if endpoint:
        try:
            check_endpoint(endpoint, allow_http=place.allow_http)
        except ValueError as error:
            raise AccessRefused(str(error), where=str(place)) from None
    login = dict(place.credentials())
    names = {"access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key"}
    keys = {theirs: login[ours] for ours, theirs in names.items() if ours in login}
    if "session_token" in login:
        keys["aws_session_token"] = login["session_token"]
    return boto3.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=place.region or os.environ.get("AWS_REGION") or "us-east-1",
        verify=str(place.ca_file) if place.ca_file is not None else None,
        config=Config(
            s3={"addressing_style": "path" if endpoint else "auto"},
            retries={"mode": "standard", "max_attempts": 6},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=32,
        ),
        **keys,
    )

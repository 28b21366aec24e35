"""Names of the objects on S3 below a prefix, without the rest of what a listing says of them.

botocore turns five fields of each object into Python, among them a date: 42 ms of CPU for an answer of 1,000 objects,
in the one thread in which s3fs talks to the store, so 4 s for the files of 10,000 trials. Here the keys are taken out
of the answer before it is parsed (1 ms). Requests, credentials, repetition and errors stay those of s3fs.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from html import unescape
from typing import Any

#: Set in the task that lists names only: other tasks use the same client, and need sizes and dates.
_NAMES_ONLY: ContextVar[bool] = ContextVar("names_only", default=False)
#: An object in an answer. botocore has seen before that the answer is well-formed.
_OBJECT = re.compile(rb"<Contents>.*?<Key>([^<]*)</Key>.*?</Contents>", re.DOTALL)


def find_names(fs: Any, bucket: str, prefix: str) -> list[str]:
    """Return the sorted keys of all objects of a bucket that begin with ``prefix``: one request per thousand.

    Args:
        fs: file system of s3fs.
        bucket: name of the bucket.
        prefix: beginning of the keys.
    """
    from fsspec.asyn import sync  # imported here: local ledgers never need it

    keys: list[str] = sync(fs.loop, _find_names, fs, bucket, prefix)
    return keys


async def _find_names(fs: Any, bucket: str, prefix: str) -> list[str]:
    _NAMES_ONLY.set(True)
    client = await fs.set_session()
    # An identity makes the second registration with the same client do nothing.
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_names, unique_id=__name__)
    request = {"Bucket": bucket, "Prefix": prefix, **fs.req_kw}
    keys: list[str] = []
    while True:
        answer = await fs._call_s3("list_objects_v2", **request)
        keys += [each["Key"] for each in answer.get("Contents", ())]
        if not answer.get("IsTruncated"):
            return keys
        request["ContinuationToken"] = answer["NextContinuationToken"]


def _take_names(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Move the objects of an answer past botocore's parser, with their key as the only field."""
    body = response_dict["body"]
    if not _NAMES_ONLY.get() or response_dict["status_code"] >= 300:
        return
    keys = [key.decode() for key in _OBJECT.findall(body)]
    if len(keys) != body.count(b"<Contents"):
        return  # written in another way: botocore's parser knows all of them
    # botocore replaces %xx in them afterwards, as it does where it has parsed them.
    customized_response_dict["Contents"] = [{"Key": unescape(key) if "&" in key else key} for key in keys]
    response_dict["body"] = _OBJECT.sub(b"", body)

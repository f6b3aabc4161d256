"""Inputs in S3, against a server that plays it; left out where moto and s3fs are not installed."""

import gzip
import json

import pytest

from linscale.config import UserError
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources
from linscale.data.sources import UnavailableInputError

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

TEXTS = [f"document {number} é\n" + "word " * (number % 97) for number in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.fixture
def bucket(monkeypatch):
    import boto3
    import s3fs

    host = server.ThreadedMotoServer(port=0)
    host.start()
    address, port = host.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    yield lambda key, data: client.put_object(Bucket="corpus", Key=key, Body=data)
    host.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def texts_of(*inputs):
    return [document.text for source in find_sources(inputs)[0] for document in read_documents(source)]


def test_objects_folders_and_patterns(bucket):
    bucket("x.jsonl.gz", gzip.compress(LINES))
    for name in ("b.txt", "a.txt", ".c.txt", "README.md"):
        bucket(f"folder/{name}", name.encode())
    assert texts_of("s3://corpus/x.jsonl.gz") == TEXTS
    assert texts_of("s3://corpus/folder") == texts_of("s3://corpus/folder/*.txt") == ["a.txt", "b.txt"]
    sources, left_out = find_sources(["s3://corpus/folder/"])
    assert [source.name for source in sources] == ["s3://corpus/folder/a.txt", "s3://corpus/folder/b.txt"]
    assert left_out == ["s3://corpus/folder/README.md"]
    assert sources[0].identity == find_sources(["s3://corpus/folder/a.txt"])[0][0].identity


def test_a_replaced_object_is_another_input(bucket):
    bucket("x.txt", b"one")
    (first,), _ = find_sources(["s3://corpus/x.txt"])
    bucket("x.txt", b"two")
    with pytest.raises(UserError, match=r"s3://corpus/x\.txt: it changed"):
        list(read_documents(first))
    (second,), _ = find_sources(["s3://corpus/x.txt"])
    assert second.identity != first.identity
    assert [document.text for document in read_documents(second)] == ["two"]


def test_errors(bucket, monkeypatch):
    import s3fs

    for name in ("s3://corpus/none.txt", "s3://no-such-bucket/x.txt"):
        with pytest.raises(UnavailableInputError, match=f"^input '{name}': not found"):
            find_sources([name])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnavailableInputError, match=r"no credentials .*aws configure.*FSSPEC_S3_ANON=true"):
        find_sources(["s3://corpus/x.txt"])

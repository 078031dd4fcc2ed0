"""Shards at addresses: indexes by ranges, a bounded cache, retries, and sentences."""

import base64
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from arrays import same_batches, sentence
from hub_files import named
from shard_files import Server, odd_images, samples, serving, write_shards, write_tar

from simclr_pl.core.batch import Batch
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.images.shards import index, store, transport
from simclr_pl.images.shards.index_files import index_of
from simclr_pl.images.survey import survey


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transport, "PAUSE_S", 0.01)
    monkeypatch.setattr(transport, "TRIES", 4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(write_shards(tmp_path / "set", odd_images())) as server:
        yield server


def read(root: Any, **args: Any) -> Any:
    given = named("shards", **args)
    prepare(given, root)
    return load(given, root).train


def batches(source: Any, workers: int = 0, part: slice = slice(None)) -> list[Batch]:
    views = SimCLRViews(8, seed=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    mine = source.prepared(views, views, workers)
    try:
        return list(mine.batches([b[part] for b in order.split(8)], 3, "both", training=True))
    finally:
        mine.close()


@pytest.mark.processes
@pytest.mark.parametrize("cache_gb", [0, 0.00005, 1])
@pytest.mark.parametrize("fail", [0, 4])
def test_far_shards_give_the_batches_of_near_ones(
    tmp_path: Path, server: Server, cache_gb: float, fail: int
) -> None:
    want = batches(read(tmp_path / "set"))
    server.fail = fail
    source = pickle.loads(pickle.dumps(read(server.address, cache_gb=cache_gb)))
    for workers in (0, 2):
        assert same_batches(batches(source, workers), want)
    for rank in range(2):
        got = batches(source, 0, slice(rank, None, 2))
        for half, whole in zip(got, want, strict=True):
            assert half.images.equal(whole.images[rank::2])


def held(tmp_path: Path) -> int:
    found = (tmp_path / "cache" / "simclr_pl" / "shards" / "blocks").rglob("*")
    return sum(path.stat().st_size for path in found if path.is_file())


def test_the_cache_is_bounded_and_what_is_in_it_is_fetched_once(
    tmp_path: Path, server: Server
) -> None:
    size = (tmp_path / "set" / "0000.tar").stat().st_size
    source = read(server.address, cache_gb=1.5 * size / 1e9)
    server.asked.clear()
    first, asked = batches(source), list(server.asked)
    assert held(tmp_path) == size
    assert [name for name, *_ in asked].count("0000.tar") <= 1
    assert len([name for name, *_ in asked if name != "0000.tar"]) == 24
    server.asked.clear()
    assert same_batches(batches(source), first)
    assert len(server.asked) == 24
    # Another set takes the room; a run on the first one fetches anew what it misses.
    other = write_tar(tmp_path / "set" / "other" / "9.tar", samples(odd_images(12)))
    room = 1.5 * size
    assert size + other.stat().st_size > room >= other.stat().st_size
    read(f"{server.address}/other/9.tar", cache_gb=room / 1e9).content(0)
    assert 0 < held(tmp_path) <= room
    assert same_batches(batches(source), first)


def test_the_splits_of_a_set_share_the_cache(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "val", "test")):
        write_tar(tmp_path / "three" / f"{name}.tar", samples(odd_images(12 - number)))
    with serving(tmp_path / "three") as server:
        given = named("shards", cache_gb=1)
        for _ in range(2):  # again, when all of them are in the cache
            prepare(given, server.address)
            splits = load(given, server.address)
            for split in (splits.train, splits.val, splits.test):
                assert split is not None
                split.content(0)
        whole = sum(path.stat().st_size for path in (tmp_path / "three").glob("*.tar"))
        assert held(tmp_path) == whole
        blocks = next((tmp_path / "cache" / "simclr_pl" / "shards" / "blocks").iterdir())
        (blocks / ".0.0123456789ab.tmp").write_bytes(b"half a block")
        prepare(given, server.address)
        assert held(tmp_path) == whole


def test_an_index_is_made_by_few_requests_and_kept(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(server.address, cache_gb=0)
    indexed = {name for name, first, _ in server.asked if first == 0}
    assert indexed == {"0000.tar", "0001.tar", "0002.tar"}
    with monkeypatch.context() as patch:
        patch.setattr(index, "fetch", None)
        read(server.address, cache_gb=0)
    big = write_tar(tmp_path / "big" / "0.tar", [(f"{i}.png", bytes(100_000)) for i in range(20)])
    monkeypatch.setattr(index, "WINDOW", 4096)
    with serving(big.parent) as other:
        shard = transport.look(f"{other.address}/0.tar")
        made = index_of(shard, None, tmp_path / "elsewhere")
        assert len(made.offsets) == 20
        most = 26 * 4096 + index.TAIL
        assert sum(count for *_, count in other.asked) < most < big.stat().st_size / 10


def test_an_index_beside_a_far_shard_takes_the_place_of_a_walk_over_it(
    tmp_path: Path, server: Server
) -> None:
    path = tmp_path / "set" / "0000.tar"
    near = index_of(transport.look(str(path)), None, tmp_path / "one")
    far = transport.look(f"{server.address}/0000.tar")
    tail = index.tail_of(far, near)
    assert sum(tail) == far.size
    size = path.with_name("0000.tar.index").stat().st_size
    for _ in range(2):  # then it is kept
        got = index_of(far, None, tmp_path / "two")
        assert server.asked == [("0000.tar.index", 0, size), ("0000.tar", *tail)]
        assert list(got.names) == list(near.names)
        assert (got.offsets == near.offsets).all()


@pytest.mark.parametrize("unfit", ["absent", "broken", "other suffix", "other size", "other bytes"])
def test_an_index_of_another_shard_is_left_where_it_is(
    tmp_path: Path, server: Server, unfit: str
) -> None:
    members = samples([bytes(2000)] * 9)
    path = write_tar(tmp_path / "set" / "0.tar", members)
    image = "png" if unfit == "other suffix" else None
    index_of(transport.look(str(path)), None, tmp_path / "one")
    beside = path.with_name("0.tar.index")
    if unfit == "absent":
        beside.unlink()
    elif unfit == "broken":
        beside.write_bytes(b"<html>")
    elif unfit == "other size":
        write_tar(path, [*members, ("z.png", bytes(9000))])
    elif unfit == "other bytes":
        write_tar(path, [*members[:-1], (members[-1][0], b"9")])
    far = index_of(transport.look(f"{server.address}/0.tar"), image, tmp_path / "two")
    path.with_name("0.tar.index").unlink(missing_ok=True)
    near = index_of(transport.look(str(path)), image, tmp_path / "one")
    assert list(far.names) == list(near.names)
    assert (far.tail, far.words) == (near.tail, near.words)
    assert far.offsets.tolist() == near.offsets.tolist()


def test_an_image_in_the_cache_is_read_without_the_rest_of_its_block(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", 1000)
    source = read(server.address, cache_gb=1)
    want = [source.content(place) for place in range(40)]
    near, read_in_all = os.pread, list[int]()

    def counted(file: int, size: int, start: int) -> bytes:
        read_in_all.append(size)
        return near(file, size, start)

    monkeypatch.setattr(os, "pread", counted)
    assert [source.content(place) for place in range(40)] == want
    assert sum(read_in_all) == sum(map(len, want))
    assert len(read_in_all) > 40


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were fetched together, each time."""
    found: list[int] = []

    class Pool(store.ThreadPoolExecutor):
        def map(self, call: Any, *items: Any) -> Any:
            found.append(len(items[0]))
            return super().map(call, *items)

    monkeypatch.setattr(store, "ThreadPoolExecutor", Pool)
    return found


def test_a_batch_is_fetched_together(server: Server, at_once: list[int]) -> None:
    source = read(server.address, cache_gb=0)
    at_once.clear()
    batches(source)
    assert at_once == [8] * 5


def test_images_that_are_looked_at_one_by_one_are_fetched_together(
    server: Server, at_once: list[int]
) -> None:
    given = named("shards", cache_gb=0)
    prepare(given, server.address)
    splits = load(given, server.address)
    at_once.clear()
    asked = len(server.asked)
    fingerprint(splits)
    assert at_once == [40]
    survey({"train": splits.train}, None, 0)
    assert at_once == [40, 16, 16, 8]
    assert len(server.asked) == asked + 80


def test_a_server_that_stays_ill_is_a_sentence_and_no_bad_image(server: Server) -> None:
    given = named("shards", cache_gb=0)
    prepare(given, server.address)
    source = load(given, server.address, on_bad_image="skip").train
    server.status = 500
    with pytest.raises(UserError, match="4 tries failed, the last one with") as caught:
        batches(source)
    assert f"{server.address}/000" in sentence(caught)
    assert "cannot be read" in sentence(caught)


@pytest.mark.parametrize("place", ["/0000.tar", "/", "/train-*.tar", "/list.txt"])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "give credentials"),
        (403, "give credentials"),
        (404, "nothing at this address"),
        (500, "4 tries failed, the last one with ClientResponseError: 500"),
    ],
)
def test_a_refusal_is_a_sentence(server: Server, status: int, said: str, place: str) -> None:
    server.status = status
    with pytest.raises(UserError, match=said) as caught:
        read(server.address + place)
    how = "read" if place in ("/0000.tar", "/list.txt") else "listed"
    assert sentence(caught).startswith(f"{server.address}{place} cannot be {how}: ")


@pytest.mark.parametrize("place", ["/0000.tar", "/", "/train-*.tar", "/list.txt"])
def test_a_server_that_is_not_there_is_a_sentence(place: str) -> None:
    """A folder of a server that nobody answers for is no empty one."""
    with pytest.raises(UserError, match=r"4 tries failed, the last one with .*Connect") as caught:
        read(f"http://127.0.0.1:9{place}")
    assert sentence(caught).startswith(f"http://127.0.0.1:9{place} cannot be ")


class NoCredentialsError(Exception):
    """As botocore's is called."""


class ProfileNotFound(Exception):  # noqa: N818 - likewise
    pass


@pytest.mark.parametrize("error", [NoCredentialsError, ProfileNotFound])
@pytest.mark.parametrize("place", ["0000.tar", "", "train-*.tar", "list.txt"])
def test_a_store_without_credentials_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception]
) -> None:
    tried = []

    class Store(fsspec.AbstractFileSystem):
        protocol = "store"

        def ls(self, *_: Any, **__: Any) -> Any:
            tried.append(place)
            raise error("who are you")

        info = cat_file = ls

    fsspec.register_implementation("store", Store, clobber=True)
    monkeypatch.setattr(transport, "_systems", {})
    with pytest.raises(UserError, match=r"give credentials .* of S3 in AWS_PROFILE") as caught:
        read(f"store://bucket/{place}")
    assert sentence(caught).startswith(f"store://bucket/{place} cannot be ")
    assert len(tried) == 1  # another try would change nothing


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nothing://host/a.tar", "there are no addresses that begin nothing://"),
        ("needy://host/a.tar", "addresses of needy:// cannot be opened (TypeError: "),
        ("s3://bucket/a.tar", "needs a package that is not here: pip install 'simclr_pl[s3]'"),
    ],
)
def test_an_address_that_cannot_be_opened_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    class Needy(fsspec.AbstractFileSystem):
        def __init__(self, host: str, **_: Any) -> None:
            """As FTP's."""

    fsspec.register_implementation("needy", Needy, clobber=True)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(transport, "_systems", {})
    with pytest.raises(UserError) as caught:
        read(address)
    assert sentence(caught).startswith(f"{address}")
    assert said in sentence(caught)


def test_a_server_that_wants_a_password_gets_that_of_netrc(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.wanted = "Basic " + base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("")
    with pytest.raises(UserError, match=r"cannot be listed: .* credentials \(of HTTP in ~/.netrc"):
        read(server.address)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setattr(transport, "_systems", {})  # another process
    read(server.address)
    (tmp_path / "netrc").unlink()  # which was read once, not for each request
    assert len(read(server.address)) == 40


def test_a_server_without_ranges_is_a_sentence(server: Server) -> None:
    source = read(server.address, cache_gb=0)
    server.ranges = False
    with pytest.raises(UserError, match="whole files alone"):
        batches(source)


def test_a_far_shard_that_changes_is_indexed_anew(tmp_path: Path, server: Server) -> None:
    address = f"{server.address}/{{0000,0001}}.tar"
    assert len(read(address)) == 32
    write_tar(tmp_path / "set" / "0001.tar", samples(odd_images(3), 16))
    assert len(read(address)) == 19
    (tmp_path / "set" / "list.txt").write_text("0000.tar\n")
    assert len(read(f"{server.address}/list.txt")) == 16


def test_broken_far_shards_are_sentences(tmp_path: Path, server: Server) -> None:
    whole = (tmp_path / "set" / "0000.tar").read_bytes()
    for content, said in (
        (b"", "is empty"),
        (whole[:3000], "cut off"),
        (b"\x1f\x8b", "compressed"),
    ):
        (tmp_path / "set" / "0001.tar").write_bytes(content)
        with pytest.raises(UserError, match=said) as caught:
            read(f"{server.address}/0001.tar")
        assert f"{server.address}/0001.tar" in sentence(caught)

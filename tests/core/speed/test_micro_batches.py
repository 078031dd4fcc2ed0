"""Micro-batches: the whole batch's step in the memory of a part, alone, compiled, on ranks."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.distributed as dist
from parts import (
    ENCODERS,
    SIZE,
    WITHOUT_BATCH_NORM,
    assert_same,
    batch,
    build,
    error,
    images,
    in_parts,
    literally,
    loss_of,
    plain,
    steps,
)
from ranks import ranks
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from simclr_pl.core.batch import Batch
from simclr_pl.core.model.batch_norm import globalise_batch_norm
from simclr_pl.core.speed.micro_batches import encode_in_parts


def at_once(
    encoder: nn.Module, parts: Sequence[Batch], images: Callable[[Batch], Tensor]
) -> Tensor:
    whole = Batch(*(torch.cat([part[i] for part in parts]) for i in range(3)), parts[0].epoch)
    return encoder(images(whole))


# Exactness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 20, SIZE, SIZE + 1])
@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_without_batch_norm_parts_are_the_whole_batch(name: str, size: int) -> None:
    want = steps(build(name), in_parts(SIZE), at_once)
    assert_same(steps(build(name), in_parts(size), encode_in_parts), want)


def test_features_of_three_views_come_view_by_view() -> None:
    def three(part: Batch) -> Tensor:
        two = images(part)
        return torch.cat([two, 2 * two[: len(part.labels)]])

    encoder = build(next(iter(WITHOUT_BATCH_NORM)))
    want = at_once(encoder, in_parts(SIZE), three)
    got = encode_in_parts(encoder, in_parts(7), three)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("size", [1, 7, SIZE])
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.long
def test_each_part_is_encoded_alone_and_buffers_move_once_by_the_mean(name: str, size: int) -> None:
    want = steps(build(name), in_parts(size), literally)
    assert_same(steps(build(name), in_parts(size), encode_in_parts), want)


def test_counters_move_by_one_a_step_and_nothing_moves_in_backward() -> None:
    encoder = build("batch norm")
    told = steps(encoder, in_parts(7), encode_in_parts)
    assert int(encoder[1].num_batches_tracked) == 2
    for name, value in told.items():
        if name.endswith(" after"):
            assert value.equal(told[name.removesuffix("after") + "before backward"])
    assert not told["0 1.running_mean after"].equal(told["1 1.running_mean after"])


def test_counters_of_half_precision_runs_move_by_one_too() -> None:
    """257 is 256 in bfloat16, a run's default type: 257 / 257 would be no step at all."""
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)).bfloat16()
    parts = [Batch(torch.rand(2, 1, 2, 2), *torch.zeros(2, 2), 0) for _ in range(257)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        encode_in_parts(encoder, parts, lambda part: part.images.bfloat16())
    finally:
        torch.set_default_dtype(torch.float32)
    assert int(encoder[1].num_batches_tracked) == 1


def test_without_gradients_the_features_are_the_same() -> None:
    one, other = build("batch norm"), build("batch norm")
    with torch.no_grad():
        got = encode_in_parts(one, in_parts(7), images)
    assert not got.requires_grad
    assert got.equal(encode_in_parts(other, in_parts(7), images))


def test_dropout_draws_other_masks_in_each_part() -> None:
    """Else the promise above would be kept by a generator that is always set back."""
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    part = batch().split([SIZE])[0]
    ones = torch.ones(2 * SIZE, 64)
    features = encode_in_parts(encoder, [part, part], lambda _: ones)
    first, second = features[:SIZE], features[SIZE : 2 * SIZE]
    assert not first.equal(second)


# Memory ------------------------------------------------------------------------------------------


class Alive:
    """Which tensors' memory somebody still holds."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def now(self) -> int:
        """Bytes of those that are alive."""
        self.seen = {k: (ref, size) for k, (ref, size) in self.seen.items() if not ref.expired()}
        return sum(size for _, size in self.seen.values())

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        ref = StorageWeakRef(storage)
        self.seen[ref.cdata] = (ref, storage.nbytes())
        self.peak = max(self.peak, self.now())

    def watch(self, network: nn.Module) -> None:
        for module in network.modules():
            module.register_forward_hook(lambda module, given, output: self.add(output))


@pytest.mark.parametrize("name", ["batch norm", "dropout and stochastic depth of timm"])
def test_activations_of_one_part_are_alive_at_a_time(name: str) -> None:
    peaks = {}
    for count in (1, 10):
        encoder, alive = build(name), Alive()
        alive.watch(encoder)
        loss_of(encode_in_parts(encoder, in_parts(SIZE // count), images)).backward()
        peaks[count] = alive.peak
    assert peaks[1] > 200_000
    assert peaks[10] < 0.15 * peaks[1], peaks  # a tenth, and all features


def test_images_of_one_part_are_alive_at_a_time() -> None:
    encoder, alive = build("batch norm"), Alive()
    made: list[int] = []

    def watched(part: Batch) -> Tensor:
        assert alive.now() == 0, "images of another part are still there"
        made.append(int(part.index[0]))
        views = images(part)
        alive.add(views)
        return views

    loss_of(encode_in_parts(encoder, in_parts(10), watched)).backward()
    # The last part is where backward begins: it needn't be made again.
    assert made == [0, 10, 20, 30, 20, 10, 0]


# Precision ---------------------------------------------------------------------------------------


# A run's precision is torch's default type in a step, but no longer in its backward.


class Ramp(nn.Module):
    """Makes a constant in each pass, of torch's default type."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0.1, 1, x.shape[1])[:, None, None]


def test_constants_made_in_the_second_pass_have_the_type_of_the_first() -> None:
    encoder = plain(lambda width: Ramp()).double()
    torch.set_default_dtype(torch.float64)
    try:
        want = torch.autograd.grad(
            loss_of(literally(encoder, in_parts(7), images)), list(encoder.parameters())
        )
        loss = loss_of(encode_in_parts(encoder, in_parts(7), images))
    finally:
        torch.set_default_dtype(torch.float32)
    loss.backward()
    assert torch.get_default_dtype() == torch.float32
    for parameter, grad in zip(encoder.parameters(), want, strict=True):
        assert error(parameter.grad, grad) < 1e-12


# torch.compile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 7])
@pytest.mark.parametrize("name", ["batch norm", "dropout"])
@pytest.mark.long
def test_a_compiled_encoder_works_and_is_compiled_once(name: str, size: int) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    want = steps(build(name), in_parts(size), encode_in_parts)
    encoder = build(name)
    encoder.compile(backend=counter)
    got = steps(encoder, in_parts(size), encode_in_parts)
    compiled = counter.frame_count
    assert compiled >= 1
    assert_same(got, want)
    steps(encoder, in_parts(size), encode_in_parts)
    assert counter.frame_count == compiled
    torch._dynamo.reset()


# Several ranks -----------------------------------------------------------------------------------


def on_this_rank(name: str, size: int) -> dict[str, Tensor]:
    """Two steps of this rank's share: features by image, averaged gradients, and buffers."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world > 1 else 0
    parts = in_parts(size, rank, world)
    encoder = globalise_batch_norm(build(name), torch.device("cpu"))
    told = {}
    for step in range(2):
        encoder.zero_grad()
        features = encode_in_parts(encoder, parts, images)
        loss_of(features).backward()
        for parameter in encoder.parameters():
            if world > 1:
                dist.all_reduce(parameter.grad)
            parameter.grad /= world  # as DDP does
        told |= {f"{step} {n}": p.grad.clone() for n, p in encoder.named_parameters()}
        told |= {f"{step} {n}": b.clone() for n, b in encoder.named_buffers()}
        told[f"{step} features"] = features.detach()
    return told | {"index": torch.cat([part.index for part in parts])}


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["batch norm", "batch norm by plain averages"])
def test_uneven_ranks_encode_the_same_micro_batches(name: str, world: int) -> None:
    """Micro-batches of 6 or 7 images on three ranks are 2, 2 and 2 or 2, 2 and 3."""
    want = on_this_rank(name, 7)
    told = ranks(world, on_this_rank, name, 7)
    index = torch.cat([each.pop("index") for each in told])
    assert sorted(index.tolist()) == want.pop("index").tolist()
    for step in range(2):
        features = [each.pop(f"{step} features").chunk(2) for each in told]
        joined = torch.cat([f for f, _ in features]), torch.cat([s for _, s in features])
        ordered = torch.cat([view[index.argsort()] for view in joined])
        assert error(ordered, want.pop(f"{step} features")) < 1e-9
    for each in told:
        assert_same(each, want)

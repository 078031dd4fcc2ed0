"""Groups of images: whole in the validation holdout and in a share of the labels, kept by runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from manifests import grouped, write_manifest

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load
from simclr_pl.images.fingerprint import Contents, changes
from simclr_pl.images.groups import Groups, number_groups
from simclr_pl.images.hashes import hashes
from simclr_pl.images.heldout import HeldOut
from simclr_pl.images.splits import (
    choosing_tenth,
    draw_fraction,
    drawn_groups,
    few_labels,
    holdout,
)

HEADER = "path,label,group"
SEEDS = range(60)


def groups_of(sizes: list[int], alone: int = 0) -> Groups:
    """Groups `g0`, `g1`, ... of so many images, and images without a group."""
    ids = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    ids = torch.cat([ids, len(sizes) + torch.arange(alone)])
    keys = [b"g%d" % g for g in range(len(sizes))] + [b"%d.png" % n for n in range(alone)]
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    return Groups(shuffled, keys, len(sizes))


def whole(chosen: torch.Tensor, groups: Groups, of: torch.Tensor | None = None) -> bool:
    """Whether no group has images among the chosen ones and among the others (of `of`)."""
    mask = torch.zeros(len(groups.ids), dtype=torch.bool)
    mask[chosen] = True
    others = ~mask if of is None else ~mask & of
    return not set(groups.ids[mask].tolist()) & set(groups.ids[others].tolist())


# The rule -----------------------------------------------------------------------------------------

GROUPS = groups_of([1, 9, 3, 14, 7, 2, 5, 20, 4, 4, 8, 6, 11, 3, 3], alone=30)
LABELS = (torch.arange(len(GROUPS.ids)) * 7) % 3


def test_whole_groups_are_held_out_by_hash_until_a_tenth_is_reached() -> None:
    images, largest = len(LABELS), 20
    seen = set()
    for seed in SEEDS:
        held = holdout(LABELS, seed, groups=GROUPS)
        assert held.equal(held.unique())  # rising, each once
        assert whole(held, GROUPS)
        assert images / 10 <= len(held) < images / 10 + largest
        ranked = sorted(range(len(GROUPS.keys)), key=lambda k: hashes([GROUPS.keys[k]], seed)[0])
        taken = GROUPS.ids[held].unique().tolist()
        assert sorted(ranked[: len(taken)]) == taken  # the first by their hashes
        without_last = (GROUPS.ids[held] != ranked[len(taken) - 1]).sum()
        assert without_last < images / 10
        seen |= set(taken)
    assert len(seen) > 30


def test_a_group_that_comes_or_goes_moves_none_but_those_at_the_end() -> None:
    present = range(len(GROUPS.keys))

    def held(without: int | None = None) -> set[int]:
        rows = (GROUPS.ids != (-1 if without is None else without)).nonzero()[:, 0]
        part = GROUPS.at(rows)
        return set(part.ids[holdout(LABELS[rows], 4, groups=part)].tolist())

    everyone = held()
    for gone in present:
        now = held(gone)
        assert everyone - {gone} <= now | {gone}  # none is taken back
        if gone not in everyone:
            assert len(everyone ^ now) <= 1  # a tenth of fewer images is reached a little earlier


def test_labelled_images_count_where_there_are_some() -> None:
    labels = torch.where(GROUPS.ids % 2 == 0, LABELS, UNLABELLED)
    known = int((labels != UNLABELLED).sum())
    for seed in SEEDS:
        held = holdout(labels, seed, groups=GROUPS)
        assert whole(held, GROUPS)
        assert (labels[held] != UNLABELLED).all()
        assert len(held) >= round(known / 10)
    nothing = torch.full_like(labels, UNLABELLED)
    assert holdout(nothing, 3, groups=GROUPS).equal(holdout(LABELS, 3, groups=GROUPS))


def test_unlabelled_images_go_with_their_group() -> None:
    labels = LABELS.clone()
    labels[::2] = UNLABELLED
    for seed in SEEDS:
        assert whole(holdout(labels, seed, groups=GROUPS), GROUPS)


@pytest.mark.parametrize("sizes", [[40], [30, 10], [21, 1, 18]])
def test_a_group_that_fills_a_split_is_said(sizes: list[int]) -> None:
    groups = groups_of(sizes)
    labels = torch.arange(len(groups.ids)) % 2
    # Of several groups the large one comes first with some seeds.
    first = (int(groups.ids[groups.ranks(seed).argmin()]) for seed in SEEDS)
    seed = next(seed for seed, group in zip(SEEDS, first, strict=False) if group == 0)
    with pytest.raises(UserError) as refused:
        holdout(labels, seed, groups=groups)
    sentence = f"the group g0 ({sizes[0]} images) is so large that "
    assert str(refused.value).startswith(sentence)
    assert (
        "of train's 40 labelled images would be held out for validation, and a group is never cut"
        in str(refused.value)
    )


def test_the_group_that_is_named_is_the_one_that_is_counted() -> None:
    groups = groups_of([101, 100])
    labels = torch.full((201,), UNLABELLED)
    small, large = ((groups.ids == group).nonzero()[:, 0] for group in (0, 1))
    labels[small[:1]], labels[large[:60]] = 0, 1
    sentences = set()
    for seed in SEEDS:
        try:
            holdout(labels, seed, groups=groups)
        except UserError as error:
            sentences.add(str(error).partition(" is so")[0])
    assert sentences == {"the group g1 (60 images)"}


def test_names_of_groups_are_any_bytes() -> None:
    _, names = number_groups([["\udcff", "a"]])
    assert names == [b"a", b"\xff"]


# A share of the labels ----------------------------------------------------------------------------


def test_a_share_of_the_labels_is_whole_groups_and_shares_are_nested() -> None:
    labels = torch.where(torch.arange(len(LABELS)) % 4 == 0, UNLABELLED, LABELS)
    known = labels != UNLABELLED
    for seed in range(20):
        smaller: set[int] = set()
        for fraction in (0.2, 0.3, 0.6, 0.9):
            drawn = draw_fraction(labels, fraction, seed, GROUPS)
            assert drawn.equal(drawn.unique())
            assert known[drawn].all()
            assert whole(drawn, GROUPS, known)
            assert len(drawn) >= round(fraction * int(known.sum()))
            assert smaller <= set(drawn.tolist())
            smaller = set(drawn.tolist())
        assert draw_fraction(labels, 1.0, seed, GROUPS).equal(known.nonzero()[:, 0])
        # Features of the labelled images alone give the same images.
        rows = known.nonzero()[:, 0]
        part = draw_fraction(labels[rows], 0.3, seed, GROUPS.at(rows))
        assert rows[part].equal(draw_fraction(labels, 0.3, seed, GROUPS))
    line = drawn_groups(0.5, labels, torch.tensor([1, 2, 3]), groups_of([135]).at(GROUPS.ids * 0))
    assert line == (
        "label_fraction 0.5 draws whole groups (1 groups: 3 of 97 labelled images, 3.1%), not "
        "balanced by class"
    )


def test_groups_that_leave_a_class_empty_are_said() -> None:
    groups = groups_of([10] * 10)
    labels = (groups.ids == 7).long()  # one class is one group
    said = None
    for seed in SEEDS:
        try:
            draw_fraction(labels, 0.1, seed, groups)
        except UserError as error:
            said = str(error)
            assert "label_fraction 0.1 draws whole groups, which leaves class " in said
            least = float(said.rsplit(" ", 1)[1])
            assert set(labels[draw_fraction(labels, least, seed, groups)].tolist()) == {0, 1}
    assert said is not None


def test_whole_groups_choose_hyper_parameters_and_never_more_than_half() -> None:
    images, seen = len(LABELS), set()
    for seed in SEEDS:
        chooses = choosing_tenth(LABELS, seed, GROUPS)
        assert chooses.equal(chooses.unique())
        assert whole(chooses, GROUPS)
        assert images / 10 <= len(chooses) < images / 10 + 20
        seen |= set(GROUPS.ids[chooses].tolist())
        held = holdout(LABELS, seed, groups=GROUPS)
        seen |= {-1} if chooses.equal(held) else set()
    assert len(seen) > 30
    assert -1 not in seen
    large = groups_of([70, 3, 3, 4])
    for seed in SEEDS:
        chooses = choosing_tenth(torch.arange(80) % 2, seed, large)
        assert whole(chooses, large)
        assert 8 <= len(chooses) <= 10
    with pytest.raises(UserError, match=r"are all of one group, g0 \(9 images\), so that no other"):
        choosing_tenth(torch.arange(9) % 2, 0, groups_of([9]))


def test_few_labels_are_those_of_few_groups() -> None:
    groups = groups_of([30] * 20)
    labels = torch.arange(600) % 3
    alone = few_labels(labels, 5, 3)
    chosen = few_labels(labels, 5, 3, groups)
    assert labels[chosen].bincount().tolist() == [5, 5, 5]
    assert len(groups.ids[chosen].unique()) <= 3 < len(groups.ids[alone].unique())
    assert set(chosen.tolist()) <= set(few_labels(labels, 8, 3, groups).tolist())


# Runs ---------------------------------------------------------------------------------------------


def names_and_groups(splits: Any) -> tuple[set[bytes], set[str], set[str]]:
    """Names of val, and the groups whose labels val has, and train."""
    path_of = {name: str(name, "ascii").split("/")[0] for name in splits.train.names}
    shown = zip(splits.train.names, splits.train.labels.tolist(), strict=True)
    trained = {path_of[name] for name, label in shown if label != UNLABELLED}
    return set(splits.val.names), {path_of[name] for name in splits.val.names}, trained


def test_no_group_is_on_both_sides_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = grouped(tmp_path, 20, 5)
    rows[7][2] = rows[60][2] = ""
    root = write_manifest(tmp_path / "images.csv", rows, HEADER)
    groups = {row[0]: row[2] for row in rows}
    for seed in SEEDS:
        splits: Any = load("manifest", root, seed)
        held = set(splits.val.names)
        mine = {groups[str(name, "ascii")] for name in held} - {""}
        rest = {groups[str(name, "ascii")] for name in set(splits.train.names) - held} - {""}
        assert not mine & rest
        hidden = (splits.train.labels == UNLABELLED).nonzero()[:, 0]
        assert hidden.equal(splits.held)
        assert 10 <= len(held) < 15
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{root}: 100 images in 20 groups; nothing is left out"
    assert said[1].startswith("manifest: validation has whole groups (")
    assert said[1].endswith("%), so that its classes are not balanced")


def test_a_run_keeps_its_validation_images_and_hides_what_comes_to_their_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = grouped(tmp_path, 30, 4)
    root = write_manifest(tmp_path / "images.csv", rows, HEADER)
    before = load("manifest", root)
    kept, contents = HeldOut.of(before, 0), Contents.of(before, HeldOut.of(before, 0))
    names, val, _ = names_and_groups(before)
    inside, outside = sorted(val)[0], next(f"p{n}" for n in range(30) if f"p{n}" not in val)
    for folder in (inside, outside):
        (tmp_path / folder / "new.png").touch()
        rows.append([f"{folder}/new.png", "class0", "patient" + folder[1:]])
    rows = [row for row in rows if row[0] != f"{outside}/0.png"]
    write_manifest(root, rows, HEADER)
    capsys.readouterr()
    now = load("manifest", root, kept=kept)
    assert names_and_groups(now)[0] == names
    assert not names_and_groups(now)[1] & names_and_groups(now)[2]
    assert "; 1 more images of these groups are trained on without their labels\n" in (
        capsys.readouterr().out
    )
    said = changes(contents, Contents.of(now, kept), own=False)
    assert len(said) == 1
    assert said[0].startswith("train has 121 images (120 before)")
    (tmp_path / inside / "0.png").unlink()
    write_manifest(root, [row for row in rows if row[0] != f"{inside}/0.png"], HEADER)
    assert names_and_groups(load("manifest", root, kept=kept))[0] < names


def test_another_grouping_is_another_data_set(tmp_path: Path) -> None:
    rows = grouped(tmp_path, 20, 2)
    root = write_manifest(tmp_path / "images.csv", rows, HEADER)
    before = load("manifest", root)
    kept = HeldOut.of(before, 0)
    contents = Contents.of(before, kept)
    write_manifest(root, [[*row[:2], row[2].replace("1", "x")] for row in rows], HEADER)
    now = load("manifest", root, kept=kept)
    said = changes(contents, Contents.of(now, kept), own=False)
    assert said == ["images of train or test are not the same as before"]

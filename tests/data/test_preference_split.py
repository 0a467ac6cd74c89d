import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.preferences import RankedList, leaks, load_lists, split_lists


def ranked(prompt, *responses, group="", line=1):
    ranks = tuple(range(len(responses)))
    return RankedList(prompt, responses, ranks, "s", line, group=group)


SMALL = st.sampled_from("abcdefghijkl")
LISTS = st.lists(
    st.builds(
        lambda prompt, responses, group: ranked(prompt, *responses, group=group),
        st.sampled_from(["", "p", "q", "r"]),
        st.lists(SMALL, min_size=2, max_size=3, unique=True),
        st.sampled_from(["", "g", "h"]),
    ),
    max_size=14,
)


def connected(lists):
    """Groups, the slow way: everything that reaches everything through a shared key."""
    keys = [{("t", o.group or o.prompt)} - {("t", "")} | {o.prompt + r for r in o.responses}
            for o in lists]  # fmt: skip
    groups = []
    for i, mine in enumerate(keys):
        touching = [g for g in groups if any(mine & keys[j] for j in g)]
        groups = [g for g in groups if g not in touching]
        groups.append({i}.union(*touching))
    return groups


@given(LISTS, st.floats(0.1, 0.9), st.integers(0, 5))
def test_groups_stay_whole_and_nothing_leaks(lists, fraction, seed):
    groups = connected(lists)
    if len(groups) < 2:
        with pytest.raises(ValueError, match="cannot be split"):
            split_lists(lists, fraction, seed)
        return
    train, heldout = split_lists(lists, fraction, seed)
    assert train and heldout
    assert leaks(train, heldout) == leaks(heldout, train) == []
    assert len(train) + len(heldout) == len(lists)
    held = {id(one) for one in heldout}
    for group in groups:
        assert len({id(lists[i]) in held for i in group}) == 1
    assert split_lists(lists, fraction, seed) == (train, heldout)


def test_leaks_names_first_turns_and_texts():
    train = [ranked("one", "a", "b", group="hi"), ranked("", "same", "c")]
    test = [ranked("two", "d", "e", group="hi"), ranked("", "same", "f")]
    assert leaks(train, test) == ["hi", "same"]
    assert leaks(train, [ranked("new", "same", "x")]) == []


def test_dialogues_that_open_alike_stay_together(tmp_path):
    path = tmp_path / "a.jsonl"
    dialogue = "\\n\\nHuman: opening {}\\n\\nAssistant: sure\\n\\nHuman: turn {}\\n\\nAssistant:"
    path.write_text(
        "".join(
            f'{{"chosen": "{dialogue.format(i % 40, i)} good {i}", '
            f'"rejected": "{dialogue.format(i % 40, i)} bad {i}"}}\n'
            for i in range(200)
        )
    )
    train, heldout = split_lists(load_lists(path), 0.2, seed=0)
    openings = [{one.group for one in side} for side in (train, heldout)]
    assert openings[0].isdisjoint(openings[1])
    assert len(openings[0] | openings[1]) == 40
    assert len(train) == 5 * len(openings[0])


def test_an_instruction_before_every_list_does_not_bind_them():
    lists = [ranked("Write a good review:", f"good {i}", f"bad {i}") for i in range(100)]
    train, heldout = split_lists(lists, 0.2, seed=0)
    assert 8 < len(heldout) < 35
    assert leaks(train, heldout) == []

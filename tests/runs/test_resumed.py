"""What a killed run has kept is taken over as it was written, or computed again."""

import pytest

from gma_lib.runs.resumed import map_resumably


def test_a_killed_run_goes_on_with_what_it_has_not_computed(tmp_path):
    kept, computed = tmp_path / "kept.json", []

    def compute(item):
        if item == 3 and computed == [1, 2]:
            raise KeyboardInterrupt
        computed.append(item)
        return {"sums": (item, 0.5)}

    with pytest.raises(KeyboardInterrupt):
        map_resumably(compute, [1, 2, 3], "items", kept)
    computed.append("resumed")
    found = map_resumably(compute, [1, 2, 3], "items", kept)
    assert computed == [1, 2, "resumed", 3]
    assert [list(one["sums"]) for one in found] == [[1, 0.5], [2, 0.5], [3, 0.5]]
    assert map_resumably(compute, [7], "items", None) == [{"sums": (7, 0.5)}]


@pytest.mark.parametrize("change", [("0.5", "0.7"), ("{", ""), ("]", "")])
def test_what_is_not_as_it_was_written_is_computed_again_with_one_line(tmp_path, messages, change):
    """A digit that had changed came through."""
    kept, items = tmp_path / "kept.json", [1, 2]
    first = map_resumably(lambda item: {"error": item / 2}, items, "items", kept)
    messages.clear()
    kept.write_text(kept.read_text().replace(*change, 1))
    computed = []
    again = map_resumably(
        lambda item: computed.append(item) or {"error": item / 2}, items, "", kept
    )
    assert computed == items
    assert again == first
    assert [line for line in messages if "pair" not in line] == [
        f"{kept} was damaged or changed: computing its records again"
    ]

"""Which texts are held out: the hash of the text itself decides, so equal texts stay together."""

from collections.abc import Sequence

from rlhf_ray.data.ids import stable_hash

_SPACE = 1 << 63


def heldout_mask(
    keys: Sequence[str],
    fraction: float,
    seed: int,
    *,
    source: str = "",
    what: str = "text",
    instead: str = "set --data.heldout-fraction 0",
) -> list[bool]:
    """True for about `fraction` of the different `keys`, at least one where there are two.

    A key's side does not depend on the others, as long as both sides have one. Raises ValueError
    unless 0 ≤ fraction < 1, or where one key cannot fill two sides; source, what, instead: where
    the keys are from, what one is, and what else there is to do, for its message.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out share is {fraction}: it is at least 0 and below 1")
    if fraction == 0:
        return [False] * len(keys)
    hashes = {key: stable_hash(seed, "heldout", key) for key in keys}
    if len(hashes) < 2:
        raise ValueError(
            f"{source or 'the data'} has only one {what}, however often, that cannot be split into "
            f"training and held-out: give more, or {instead}"
        )
    limit = fraction * _SPACE
    lowest, highest = min(hashes.values()), max(hashes.values())
    return [
        (hashes[key] < limit or hashes[key] == lowest) and hashes[key] != highest for key in keys
    ]

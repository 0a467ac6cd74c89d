"""What a run says when its numbers cannot be."""

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.algos.kl import negative_kl_alarm
from rlhf_ray.config import PPO
from rlhf_ray.learners.targets import kl_of_samples
from tests.learners.toys import learner, table


def with_references(rollouts: pa.Table, above: float) -> pa.Table:
    """`rollouts` with reference log-probs so many nats above the policy's own."""
    logprobs = learner(settings=PPO(prompts=8)).old_pass(rollouts).logprobs_N.numpy() + above
    ends = np.cumsum([len(row) for row in rollouts.column("response_token_ids").to_pylist()])
    place = rollouts.schema.get_field_index("ref_logprobs")
    column = pa.array(
        [list(row) for row in np.split(logprobs, ends[:-1])], rollouts.schema.field(place).type
    )
    return rollouts.set_column(place, "ref_logprobs", column)


@pytest.mark.parametrize(
    ("above", "staleness", "alarmed"),
    [(-0.01, 0, False), (0.01, 0, False), (3.0, 0, True), (-0.01, 1, False), (3.0, 1, True)],
)
def test_a_reference_of_another_distribution_raises_the_alarm(
    above: float, staleness: int, alarmed: bool
) -> None:
    """No KL divergence is far below 0, and that of what sampled stale tokens is not either."""
    settings = PPO(prompts=8, minibatches=2, max_staleness=staleness)
    one = learner(settings=settings)
    stats = one.update(staleness, with_references(table(), above))
    message = negative_kl_alarm(*kl_of_samples(stats), 8)
    assert (message is not None) == alarmed
    assert message is None or "which cannot be" in message

"""Every metric there is: name → unit, help, kind, phases. docs/metrics.md says how to read them.

A name with `<…>` stands for a family: `score/<component>` covers `score/reward`, `score/polite`, …
"""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["sft", "rm", "ppo"]
PHASES: tuple[Phase, ...] = ("sft", "rm", "ppo")
# Parts of an iteration, as `time/<name>`: none is part of another.
TIMES = ("generate", "score", "fetch", "update", "publish", "checkpoint", "evaluate")


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `kind` is `total` for what only grows during a run.

    live: no number of an iteration, but set all the time, on the metrics port alone; for the actor
    that the tags `role` and `actor` name.
    """

    unit: str
    help: str
    phases: tuple[Phase, ...] = ("ppo",)
    kind: Literal["gauge", "total"] = "gauge"
    tags: tuple[str, ...] = ()
    live: bool = False


_ALL: tuple[Phase, ...] = PHASES
_SFT: tuple[Phase, ...] = ("sft",)
_RM: tuple[Phase, ...] = ("rm",)

KEYS: dict[str, Metric] = {
    # The policy, over an iteration's rollouts
    "score/mean": Metric("score", "mean score of the iteration's responses"),
    "score/std": Metric("score", "standard deviation of those scores"),
    "score/<component>": Metric("score", "mean of one reward source", tags=("component",)),
    "kl/mean_k1": Metric("nats/response", "KL to the reference: mean over responses of Σ k1"),
    "kl/std_k1": Metric("nats/response", "standard deviation of Σ k1 over responses"),
    "kl/sampled_mean_k1": Metric("nats/response", "the same by the generators' log-probs"),
    "kl/sampled_std_k1": Metric("nats/response", "standard deviation of that over responses"),
    "kl/coef": Metric("score/nat", "β, the price of a nat of KL"),
    "kl/efficiency": Metric("1", "rise of the held-out score in its first std, over sqrt(2·KL)"),
    "response/length": Metric("tokens", "mean length of a response"),
    "response/eos_fraction": Metric("fraction", "responses that end with EOS"),
    "entropy/mean": Metric("nats/token", "mean entropy of the policy, per response token"),
    "advantage/mean": Metric("score", "mean advantage over tokens, before whitening"),
    "advantage/std": Metric("score", "standard deviation of the advantages, before whitening"),
    "staleness/mean": Metric("versions", "mean age of the tokens' versions when consumed"),
    "staleness/max": Metric("versions", "largest age of a token's version when consumed"),
    # The update
    "loss/policy": Metric("1", "policy loss, mean per token over the update"),
    "loss/value": Metric("score²", "value loss, mean per token over the update"),
    "policy/clip_fraction": Metric("fraction", "tokens where the clipped branch is the smaller"),
    "policy/ratio_max": Metric("1", "largest probability ratio, new to old, of any token"),
    "policy/approx_kl": Metric("nats/token", "k3 of the new policy to the one before the update"),
    "value/explained_variance": Metric("fraction", "variance of the returns that values explain"),
    "grad/norm": Metric("1", "norm of the gradient over all ranks, before clipping", phases=_ALL),
    "grad/norm_critic": Metric("1", "norm of a separate critic's gradient over all ranks"),
    "lr": Metric("1", "learning rate of the policy, or of the phase's model", phases=_ALL),
    # Speed and machines
    "tokens_per_s": Metric("tokens/s", "tokens of the step over its seconds", phases=_ALL),
    "samples_per_s": Metric("responses/s", "responses of the iteration over its seconds"),
    "pairs_per_s": Metric("pairs/s", "pairs of the step over its seconds", phases=_RM),
    "time/generate": Metric("s", "generators at work on the iteration's rollouts"),
    "time/score": Metric("s", "scoring that generation did not hide, without the fetch"),
    "time/fetch": Metric("s", "learners reading their rollouts"),
    "time/update": Metric("s", "log-probs, values, advantages and optimizer steps"),
    "time/publish": Metric("s", "packing and publishing the new weights"),
    "time/checkpoint": Metric("s", "writing a checkpoint"),
    "time/evaluate": Metric("s", "evaluation on held-out prompts"),
    "time/step": Metric("s", "the whole iteration, from request to report"),
    "time/wait_rollouts": Metric("s", "driver waiting for scored rollouts"),
    "generators/serving": Metric("actors", "generators that hold a version"),
    "generators/restarts": Metric("actors", "generators replaced so far", kind="total"),
    "rollouts/mixed_versions": Metric("rollouts", "responses written under two versions or more"),
    "rollouts/requeued": Metric("rollouts", "rollouts asked for again so far", kind="total"),
    # Held-out prompts
    "heldout/score": Metric("score", "mean score on held-out prompts, fixed seeds"),
    "heldout/score_std": Metric("score", "standard deviation of that score"),
    "heldout/gold": Metric("score", "mean gold score on held-out prompts"),
    "heldout/kl": Metric("nats/response", "KL to the reference on held-out prompts"),
    "heldout/length": Metric("tokens", "mean length of a held-out response"),
    "heldout/eos_fraction": Metric("fraction", "held-out responses that end with EOS"),
    "heldout/distinct2": Metric("fraction", "distinct bigrams among the held-out responses"),
    # SFT
    "loss/lm": Metric("nats/token", "cross-entropy of the next token", phases=("sft", "rm")),
    "heldout/loss_lm": Metric("nats/token", "that on texts set apart", phases=_SFT),
    "heldout/perplexity": Metric("1", "exp of the cross-entropy set apart", phases=_SFT),
    # Reward model
    "loss/rank": Metric("nats", "ranking loss", phases=_RM),
    "loss/centring": Metric("score²", "square of a list's mean score", phases=_RM),
    "loss/contrastive": Metric("nats", "SimCSE or SwAV, mean of a feature", phases=_RM),
    "meta/difference": Metric("1", "MetaRM's objective on a moved policy's samples", phases=_RM),
    "pair_accuracy": Metric("fraction", "pairs ordered as preferred", phases=_RM),
    "heldout/pair_accuracy": Metric("fraction", "that on lists set apart", phases=_RM),
    "heldout/exact_order": Metric("fraction", "lists set apart ordered as ranked", phases=_RM),
    "heldout/kendall_tau": Metric("1", "mean Kendall τ-b of scores and ranks", phases=_RM),
    "heldout/gap_mean": Metric("score", "mean score gap of a pair set apart", phases=_RM),
    "heldout/gap_std": Metric("score", "standard deviation of that gap", phases=_RM),
    "heldout/calibration_error": Metric("fraction", "calibration error of σ(gap)", phases=_RM),
    # Live, on the metrics port alone
    "progress/step": Metric("steps", "steps of the phase that are done", phases=_ALL, live=True),
    "progress/of": Metric("steps", "iterations that the run is to have", live=True),
    "progress/not_finite": Metric(
        "values", "values of the last row that were NaN or infinite", phases=_ALL, live=True
    ),
    "weights/bytes": Metric("bytes", "size of the version that generators pull", live=True),
    "queue/pending": Metric("shards", "shards that no generator has taken yet", live=True),
    "actor/state": Metric(
        "1", "1 for the state the actor is in, else 0", tags=("state",), live=True
    ),
    "actor/restarts": Metric("processes", "times it was started anew", kind="total", live=True),
    "generator/shards": Metric("shards", "shards that the generator holds", live=True),
    "generator/in_flight": Metric("rollouts", "responses under way in the engine", live=True),
    "generator/tokens": Metric("tokens", "response tokens written so far", kind="total", live=True),
    "generator/idle": Metric("1", "1 while it holds no shard, else 0", live=True),
    "generator/version": Metric("steps", "step of the version that it holds", live=True),
    "generator/lag": Metric("versions", "versions that it is behind the published one", live=True),
    "generator/load_s": Metric("s", "pulling, loading and probing its last version", live=True),
    "generator/silent_s": Metric("s", "since its engine's thread was last heard of", live=True),
}


def row_of(name: str) -> tuple[str, str | None]:
    """Key of `KEYS` that `name` belongs to, and the member's name where the key is a family.

    `score/mean` → (`score/mean`, None); `score/polite` → (`score/<component>`, `polite`).

    Raises:
        ValueError: no row covers the name.
    """
    if name in KEYS:
        return name, None
    group, _, member = name.partition("/")
    for key, metric in KEYS.items():
        if member and metric.tags and key == f"{group}/<{metric.tags[0]}>":
            return key, member
    raise ValueError(
        f"there is no metric {name!r}: add a row to rlhf_ray/observe/keys.py and one to "
        f"docs/metrics.md, or use one of {', '.join(sorted(KEYS))}"
    )

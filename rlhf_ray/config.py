"""The one typed config tree: defaults are a good run; a recipe overrides them, flags both.

Frozen: nothing rewrites a config after it is built. What cannot work together is a ValueError here,
before anything starts; what depends on data or on the cluster is checked where those are known.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from rlhf_ray import config_limits

Dtype = Literal["auto", "float32", "bfloat16"]
WeightsBy = Literal["object_store", "cuda_ipc"]
ChatTemplate = Literal["auto", "always", "never"]
OnBadRow = Literal["fail", "skip"]
OnError = Literal["fail", "drop", "default"]
Pooling = Literal["last", "mean", "pooler", "cls"]
Combination = Literal["mean", "min", "cautious"]

_STRICT = ConfigDict(extra="forbid")  # what pydantic goes by when it reads a recipe into a section


@dataclass(frozen=True)
class Run:
    __pydantic_config__ = _STRICT

    name: str = "demo"
    """Name of the run: its directory below `root`, and of its control actor `rlhf-<name>`."""
    root: str = "runs"
    """Where run directories live; on a cluster an absolute path on storage that every node sees."""
    seed: int = 0
    """Decides everything random: data order, initial weights, every rollout's own sampling seed."""
    overwrite: bool = False
    """Start again from nothing in a run directory that already holds a run."""
    tracker: Literal["wandb", "wandb-offline", "mlflow", "mlflow-offline"] | None = None
    """Where metrics go besides metrics.jsonl, TensorBoard and Ray: needs the extra of that name."""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or Path(self.name).name != self.name:
            raise ValueError(
                f"--run.name is {self.name!r}; it is the name of a directory below --run.root, "
                f"without a slash"
            )
        if self.name.startswith("rlhf-"):
            raise ValueError(
                f"--run.name is {self.name!r}; names that begin with rlhf- are those of the runs' "
                f"control actors: choose another"
            )


@dataclass(frozen=True)
class Data:
    __pydantic_config__ = _STRICT

    prompts: str | None = None
    """Prompts for PPO: .txt (one a line), .jsonl or .parquet (column `prompt`), or a datasets
    name."""
    heldout_prompts: str | None = None
    """Prompts for evaluation. None: `heldout_fraction` of `prompts` is set apart."""
    heldout_fraction: float = 0.1
    """Share of prompts, lists and texts set apart for evaluation where no file is given."""
    texts: str | None = None
    """Texts for SFT: .txt, .tsv (every cell a text), .jsonl or .parquet (`text`, or `prompt` +
    `response`)."""
    preferences: str | None = None
    """Ranked lists for the reward model: .tsv (best first) or .jsonl; see docs/data.md for every
    format."""
    heldout_preferences: str | None = None
    """Ranked lists for evaluation. None: `heldout_fraction` of `preferences` is set apart."""
    prompt_column: str = "prompt"
    """Column that holds the prompt in .jsonl, .parquet and datasets."""
    text_column: str = "text"
    """Column that holds the text in .jsonl, .parquet and datasets."""
    prompt_prefix_chars: tuple[int, int] | None = None
    """Make prompts from texts: the first a to b characters of each line (both included)."""
    max_prompt_tokens: int = 256
    """Longer prompts are cut from the left and counted."""
    chat_template: ChatTemplate = "auto"
    """Render prompts with the tokenizer's chat template: auto is `where it has one`."""
    on_bad_row: OnBadRow = "fail"
    """A bad row ends the run with file, line and fault, or is skipped, and counted in the
    summary."""


@dataclass(frozen=True)
class Model:
    __pydantic_config__ = _STRICT

    path: str | None = None
    """Base model, by path or name. None: a small decoder and its tokenizer are made from
    `data.texts`."""
    hidden: int = 256
    """Width of the decoder that is made when `path` is None."""
    layers: int = 3
    """Depth of the decoder that is made when `path` is None."""
    vocab: int = 2048
    """Largest vocabulary of the tokenizer that is made when `path` is None."""
    dtype: Dtype = "auto"
    """Compute type of learner and scorers (parameters and optimizer stay float32). auto: bfloat16
    where the hardware has it."""
    trust_remote_code: bool = False
    """Let a model's repository run its own Python code."""


@dataclass(frozen=True)
class SFT:
    __pydantic_config__ = _STRICT

    epochs: float = 1.5
    """Passes over `data.texts`; 0 skips the phase: PPO starts from `model.path` itself."""
    lr: float = 2e-3
    """Peak learning rate (cosine to a tenth, after warm-up). This suits the small decoder that is
    made here; a pretrained model wants 1e-5 to 5e-5."""
    warmup: float = 0.05
    """Share of steps in which the learning rate rises."""
    batch_tokens: int = 768
    """Tokens of one optimizer step."""
    max_tokens: int = 256
    """Longer texts are cut from the right."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters beside frozen weights (Hu et al. 2021); rank 0 trains all weights."""

    __pydantic_config__ = _STRICT

    rank: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: float = 16.0
    """Their output is scaled by alpha / rank."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the backbone train: none, all, or those of the layers with adapters."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as q_proj v_proj. Empty: all of them."""
    dropout: float = 0.0
    """Dropout before the adapters."""
    save: Literal["merged", "adapter"] = "merged"
    """Write whole weights, or the adapters alone with the path of their base."""


@dataclass(frozen=True)
class Contrastive:
    """A contrastive loss on two views of the features (Wang et al. 2024, section 3.1)."""

    __pydantic_config__ = _STRICT

    method: Literal["none", "simcse", "swav"] = "none"
    """simcse: recognise one's other view; swav: predict its cluster."""
    on: Literal["pairs", "differences"] = "pairs"
    """Features of both texts of a pair, or their difference."""
    weight: float | None = None
    """β, the weight of this loss. None: the paper's: 1 for simcse, .1 and .5 for swav."""
    prototypes: int | None = None
    """Clusters of swav. None: the paper's, 50 on pairs and 20 on differences."""
    dropout: float = 0.05
    """Dropout on the features, drawn anew for each view."""


@dataclass(frozen=True)
class MetaRM:
    """Keep telling responses of a moved policy apart (Wang et al. 2024, algorithm 1)."""

    __pydantic_config__ = _STRICT

    samples: str | None = None
    """Responses of the policy as it is now: .jsonl rows of `prompt` and `responses` (two at least),
    as jobs/sample.py writes them. None: plain training."""
    eta: float = 0.01
    """η, the step up the difference objective before the ranking gradient is taken."""
    prompts: int = 8
    """Prompts of these samples in one optimizer step."""


@dataclass(frozen=True)
class RM:
    __pydantic_config__ = _STRICT

    epochs: float = 1.0
    """Passes over `data.preferences`."""
    lr: float = 3e-4
    """Peak learning rate. This suits a small model; a pretrained one wants about 1e-5."""
    warmup: float = 0.05
    """Share of steps in which the learning rate rises."""
    batch_lists: int = 16
    """Lists (prompts) of one optimizer step."""
    max_tokens: int = 256
    """Longer inputs are cut from the left of the prompt, then from the right of the response."""
    pooling: Pooling = "mean"
    """Features of a text: last attended token, mean of attended tokens, or an encoder's pooler or
    CLS."""
    reduction: Literal["list", "pair"] = "list"
    """Average the loss by list (InstructGPT: a prompt is one element), or over all pairs."""
    form: Literal["logsigmoid", "logexp", "sigmoid"] = "logsigmoid"
    """Loss of a score gap: −log σ, the same as log(1 + exp(−gap)), or −σ (for comparison only)."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong."""
    token_dropout: float = 0.0
    """Share of a text's tokens that each training pass leaves out, drawn anew (never the first or
    the last): helps small data through several epochs."""
    margin: float = 0.0
    """Gap that is asked of every pair, beside the one that a row may bring (adaptive margin)."""
    lm_coef: float = 0.0
    """Weight of the language model loss on the best response of each list; decoders only."""
    centring: float = 0.0
    """Weight of the penalty (mean score of a list)², which keeps scores around 0."""
    members: int = 1
    """Reward models of an ensemble, trained side by side with seeds of their own."""
    combine: Combination = "mean"
    """What PPO makes of the ensemble of this run: see `reward.sources`."""
    caution: float = 1.0
    """λ of `combine: cautious`."""
    base: str | None = None
    """Backbone, by path or name. None: the SFT model of this run."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    leaks: Literal["drop", "fail", "allow"] = "drop"
    """Training lists that share a text or a first turn with `data.heldout_preferences` are dropped
    and counted, end the run, or stay."""
    lora: LoRA = LoRA()
    contrastive: Contrastive = Contrastive()
    meta: MetaRM = MetaRM()

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"rm.label_smoothing is {self.label_smoothing}; from .5 on a label would say the "
                f"opposite: give 0 to .5 (usual: .1)"
            )
        if not 0 <= self.token_dropout < 1 or (self.token_dropout and self.lm_coef):
            raise ValueError(
                f"rm.token_dropout is {self.token_dropout} with rm.lm_coef {self.lm_coef}: it is a "
                f"share below 1, and texts with holes teach no language: set one of them to 0"
            )
        if self.lm_coef and self.pooling in ("pooler", "cls"):
            raise ValueError("rm.lm_coef needs a decoder, and rm.pooling is an encoder's")
        if self.meta.samples and self.contrastive.method != "none":
            raise ValueError(
                "rm.meta.samples and rm.contrastive.method are two remedies that are not combined: "
                "leave one out"
            )
        if self.members < 1:
            raise ValueError(f"rm.members is {self.members}; an ensemble has at least 1")


@dataclass(frozen=True)
class Strength:
    """How jobs/preferences.py measures preference strength (Wang et al. 2024, section 2)."""

    __pydantic_config__ = _STRICT

    models: int = 10
    """Reward models, each with its own seed: data order and first head."""
    epochs: float = 1.0
    """Passes of each model, in place of `rm.epochs`: one that has memorised a wrong label no longer
    doubts it."""
    scheme: Literal["once", "crossed"] = "once"
    """once: each model sees all pairs, then judges them. crossed: it judges those that it did not
    see."""
    folds: int = 2
    """Crossed: parts of the data; a model trains on all but one. `models` is a multiple of it."""

    def __post_init__(self) -> None:
        if self.models < 2:
            raise ValueError(f"strength.models is {self.models}; a deviation needs at least 2")
        if self.scheme == "crossed" and (self.folds < 2 or self.models % self.folds):
            raise ValueError(
                f"strength.models {self.models} is no multiple of strength.folds {self.folds}: "
                f"each fold is left out by equally many models (at least 2 folds)"
            )


@dataclass(frozen=True)
class RewardSource:
    """One thing that scores a response: exactly one of `model`, `classifier`, `function`."""

    __pydantic_config__ = _STRICT

    model: str | None = None
    """Directory of a reward model trained here, or of an ensemble of them."""
    classifier: str | None = None
    """Any AutoModelForSequenceClassification, by path or name."""
    function: str | None = None
    """A Python function `module:function`: lists of prompts and responses in, a list of scores
    out."""
    combine: Combination = "mean"
    """Ensemble of reward models: the mean of their calibrated scores, the smallest, or the mean
    less `caution` deviations."""
    caution: float = 1.0
    """λ of `combine: cautious`."""
    label: int | None = None
    """Classifier: the class whose log-odds are the score. None: the only logit, or the last
    class."""
    weight: float = 1.0
    """Factor of this score in the sum."""
    timeout_s: float = 60.0
    """Function: seconds that one call may take."""
    on_error: OnError = "fail"
    """Function: a sample that raises, hangs or is not finite ends the run, is dropped, or gets
    `default`."""
    default: float = 0.0
    """Score of a failed sample under `on_error: default`."""
    processes: int = 1
    """Function: how many processes call it."""

    def __post_init__(self) -> None:
        given = [k for k in ("model", "classifier", "function") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(
                f"a reward source needs exactly one of model, classifier, function; this one gives "
                f"{given or 'none'}. List several sources to add their scores."
            )

    @property
    def name(self) -> str:
        """What its column `score/<name>` is called: reward, classifier or the function's name."""
        if self.function:
            return self.function.rpartition(":")[2]
        return "reward" if self.model else "classifier"


@dataclass(frozen=True)
class Reward:
    """What scores a response: `sources`, a list that a recipe alone can give (docs/rewards.md)."""

    __pydantic_config__ = _STRICT

    sources: tuple[RewardSource, ...] = ()
    """What scores a response. Empty: the reward model that this run trains from
    `data.preferences`."""
    clip: float | None = 5.0
    """Scores are clipped to ± this many, after normalisation. None: never."""
    missing_eos_penalty: float = 1.0
    """Taken off the score of a response without an EOS."""
    gold: str | None = None
    """A function `module:function` that knows the true score; only ever used in evaluation."""


@dataclass(frozen=True)
class Rollout:
    __pydantic_config__ = _STRICT

    backend: Literal["vllm", "transformers"] = "vllm"
    """What generates: vLLM, or plain transformers (slow; the oracle)."""
    max_response_tokens: int = 64
    """A response ends at EOS or here."""
    temperature: float = 1.0
    """Every log-probability is of the distribution sampled from: logits / temperature. At least
    0.01: vLLM silently raises lower values to that."""
    dtype: Dtype = "auto"
    """Type of the generator's weights. auto: what the learner computes in (model.dtype), which on
    GPUs is bfloat16: of compute capability 8 and more. On older ones give float32 for both."""
    shard_prompts: int = 16
    """Prompts leased to a generator at a time; all samples of a prompt go together."""
    ignore_eos: bool = False
    """Sample exactly `max_response_tokens` (benchmarks)."""
    max_in_flight: int = 256
    """Responses that a generator works on at a time."""
    kv_cache_mb: int | None = None
    """Memory of the engine's key-value cache, on each of its GPUs. None: 256 on a CPU; on a GPU
    what `max_in_flight` prompts with responses take at their longest, but no more than half of
    the part of it that the generator reserves."""
    tensor_parallel: int = 1
    """GPUs of one generator, all on one node (vLLM only)."""
    eager: bool = False
    """On a GPU decode without CUDA graphs: slower, with less memory and a quicker start (vLLM)."""
    sleep: bool = False
    """Generators give their GPU's memory to the learners between phases (vLLM on CUDA, with
    `ppo.max_staleness` 0)."""


@dataclass(frozen=True)
class PPO:
    __pydantic_config__ = _STRICT

    iterations: int = 16
    """Iterations: rollouts, scores, update, publish."""
    prompts: int = 128
    """Prompts of one iteration."""
    samples: int = 1
    """Responses to each prompt (a group)."""
    epochs: int = 2
    """Passes over an iteration's rollouts."""
    minibatches: int = 4
    """Optimizer steps of one pass."""
    estimator: Literal["gae", "rloo", "grpo", "reinforce_pp"] = "gae"
    """How advantages are estimated; gae needs a critic, rloo and grpo need `samples` > 1."""
    critic: Literal["separate", "shared"] = "shared"
    """A model of its own, or a value head on the policy's trunk. Only estimators with values have
    one."""
    lr: float = 9e-5
    """Peak learning rate of the policy."""
    critic_lr: float = 1e-4
    """Peak learning rate of a separate critic."""
    value_head_lr: float = 1e-3
    """Peak learning rate of the value head on a shared trunk. It starts at zero, and the policy's
    rate would leave it there."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """Constant, or annealed to nothing over `iterations`: a run made longer is another run then."""
    warmup_iterations: int = 0
    """Iterations in which only the critic learns."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 1.0
    """Gradient norm, over all ranks, above which it is scaled down."""
    gamma: float = 1.0
    """Discount a token."""
    lam: float = 0.95
    """GAE's λ."""
    clip_low: float = 0.2
    """The ratio is clipped below 1 − this."""
    clip_high: float = 0.2
    """The ratio is clipped above 1 + this."""
    dual_clip: float | None = None
    """Bound c > 1 on the loss where the advantage is negative (Ye et al. 2020)."""
    value_clip: float = 0.2
    """The value's clip around its old value."""
    value_coef: float = 0.1
    """Weight of the value loss with a shared trunk."""
    kl_coef: float = 0.1
    """β, the price of a nat of KL to the reference."""
    kl_target: float | None = None
    """Adapt β so that a response's KL tends to this many nats. None: β stays."""
    kl_horizon: float = 10_000.0
    """Adaptive β: responses over which it reacts."""
    kl_limit: float | None = None
    """End with the iteration whose responses are on average more nats than this from the
    reference, though fewer than `iterations` are done. None: go on."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and deviation 1 over the whole batch (gae and reinforce_pp)."""
    max_staleness: int = 0
    """How many versions older than the learner's the policy that samples may be. 0: synchronous
    and exact."""
    importance_cap: float = 2.0
    """Cap of each token's importance weight, exp(old − behaviour), when `max_staleness` > 0."""
    micro_batch_tokens: int | None = None
    """Tokens of one forward and backward pass of a rank. None: 2,048 on a CPU, 16,384 on a GPU."""
    activation_checkpointing: bool = False
    """Keep only what goes into each layer until the backward pass, which then runs it again: less
    memory for a quarter to a third more computation."""
    shard_weights: bool = True
    """Each of several ranks holds a part of the weights and of Adam's moments (FSDP2). False: each
    holds them all, which is faster where they fit; gradients alone are summed."""

    def __post_init__(self) -> None:
        total = self.prompts * self.samples
        if self.minibatches > 0 and total % self.minibatches:
            raise ValueError(
                f"ppo.prompts {self.prompts} × ppo.samples {self.samples} = {total} rollouts do "
                f"not divide into ppo.minibatches {self.minibatches}: change one of the three, for "
                f"example --ppo.prompts {self.prompts + (-self.prompts) % self.minibatches}"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                f"ppo.kl_target is {self.kl_target:g} and ppo.kl_coef is 0: β adapts by factors, "
                f"and 0 stays 0; give --ppo.kl-coef above 0, or --ppo.kl-target None"
            )
        if self.kl_target is not None and total >= 5 * self.kl_horizon:
            raise ValueError(
                f"ppo.kl_horizon {self.kl_horizon:g} is too short for {total} rollouts an "
                f"iteration: β could turn negative; give more than {total / 5:g}"
            )


@dataclass(frozen=True)
class Cluster:
    __pydantic_config__ = _STRICT

    generators: int = 1
    """Generator actors at the start; jobs/scale.py changes it while the run goes on."""
    learners: int = 1
    """Ranks of the learner group."""
    threads: int | None = None
    """Threads of each compute role (learner ranks share them, a scorer has half). None: the cores
    of the smallest node: roles alternate, so each may have them all."""
    scorers: int = 1
    """Scorer actors of each kind: reference and reward."""
    generator_cpus: float = 0.5
    """CPUs that a generator reserves in Ray."""
    learner_cpus: float = 0.5
    """CPUs that a learner rank reserves in Ray."""
    scorer_cpus: float = 0.0
    """CPUs that a scorer reserves in Ray."""
    generator_gpus: float | None = None
    """GPUs that a generator reserves. None: `rollout.tensor_parallel` where that is above 1; else
    one, or a part of one where there are not enough; 0 where there is none."""
    learner_gpus: float | None = None
    """GPUs that a learner rank reserves; several ranks need more than half a GPU each. None: one;
    a part of one where there are not enough, or as many as ranks; 0 where there is none."""
    scorer_gpus: float | None = None
    """GPUs that a scorer reserves. None: a part of one, at most half; 0 where there is none."""
    role_resources: bool = False
    """Place each role only on nodes that offer `rlhf_generator`, `rlhf_learner` or `rlhf_scorer` in
    Ray, so that a group of nodes for each role grows by itself."""
    autoscaling: bool = False
    """The cluster grows by itself: what has no room yet is asked for from Ray's autoscaler. GPUs by
    role must be given then, as long as no node with GPUs is up."""
    weights_by: WeightsBy = "object_store"
    """How new weights reach the generators. cuda_ipc: they map the learner's GPU memory, where Ray
    has a single GPU and the whole run is on it (vLLM, `ppo.max_staleness` 0). Between GPUs they go
    by way of the hosts: there is no transfer by NCCL."""
    start_timeout_s: float = 300.0
    """Deadline for placement and start, for a generator to load a version, and for it to free its
    GPU's memory."""
    shard_timeout_s: float = 600.0
    """Deadline for one shard: for the generator from lease to commit, then for each scorer."""
    update_timeout_s: float = 3600.0
    """Deadline of one update of the learners, and of whatever else they do: making a version,
    writing or reading their state."""
    heartbeat_timeout_s: float = 20.0
    """A generator silent for this long is taken for wedged; a learner or scorer silent for three
    times as long, for dead."""


@dataclass(frozen=True)
class Checkpoint:
    __pydantic_config__ = _STRICT

    every: int = 4
    """Iterations between checkpoints; the last is always written."""
    keep: int = 2
    """The last complete checkpoints that stay; the best on held-out prompts stays beside them."""


@dataclass(frozen=True)
class Evaluate:
    __pydantic_config__ = _STRICT

    every: int = 4
    """Iterations between evaluations on held-out prompts; the first and last are always made."""
    prompts: int = 64
    """Held-out prompts used, each with a fixed seed."""


@dataclass(frozen=True)
class Config:
    """SFT → reward model → PPO."""

    __pydantic_config__ = _STRICT

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    sft: SFT = SFT()
    rm: RM = RM()
    strength: Strength = Strength()
    reward: Reward = Reward()
    rollout: Rollout = Rollout()
    ppo: PPO = PPO()
    cluster: Cluster = Cluster()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()

    def __post_init__(self) -> None:
        config_limits.check(self)
        if self.rollout.sleep and self.ppo.max_staleness:
            raise ValueError(
                f"rollout.sleep wants phases in which generators rest, and with ppo.max_staleness "
                f"{self.ppo.max_staleness} there is none: leave one of the two out"
            )
        if self.cluster.weights_by == "cuda_ipc" and (
            self.rollout.backend != "vllm" or self.ppo.max_staleness
        ):
            raise ValueError(
                f"cluster.weights_by cuda_ipc wants vLLM's generators at rest while they load; "
                f"rollout.backend is {self.rollout.backend} and ppo.max_staleness "
                f"{self.ppo.max_staleness}: leave it out, or set vllm and 0"
            )

    @property
    def dir(self) -> Path:
        """The run's directory."""
        return Path(self.run.root) / self.run.name

    def to_dict(self) -> dict:
        """Nested dict of plain values, as written to config.yaml."""
        return dataclasses.asdict(self)

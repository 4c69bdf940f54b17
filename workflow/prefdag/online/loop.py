"""On-policy training: a generator of one record per round.

One round, in the order in which to read it:

1. `online.rollouts.sample_round` samples responses to the round's prompts;
2. `online.rewards` scores them;
3. `online.round.Round` measures old and reference log-probs, values, entropy and KL in one forward pass each, which is
   the first update's own where it can be;
4. `online.objective.targets_of` computes advantages and returns of the whole round;
5. `Round.update` takes the optimizer steps: epochs x minibatches.

The state is saved at any of these points: a killed training, continued, equals one that was not interrupted, bit for
bit. Randomness is a function of the seed and of names, so no state of a random generator exists.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefdag.config.objectives import Objective
from prefdag.config.online.methods import Reinforce
from prefdag.config.online.settings import Online
from prefdag.distributed.collectives import all_gather_objects
from prefdag.distributed.ranks import is_first
from prefdag.errors import Stopped, UserError
from prefdag.losses.policy_gradient import adapted_coefficient
from prefdag.losses.soft_labels import PairLoss
from prefdag.models.adapters import load_trained_state, trained_state
from prefdag.models.ops.recompute import recompute_blocks
from prefdag.online.optimizers import Optimizers
from prefdag.online.report import answers_to, further_metrics, round_metrics
from prefdag.online.rewards import Moments, Scorer, check_scores, labels_of, with_missing_ends
from prefdag.online.rollouts import Rollouts, sample_round
from prefdag.online.round import Models, PolicyChanged, Round
from prefdag.online.sampler import OwnSampler, Sampler
from prefdag.online.targets import Targets, targets_of
from prefdag.training.checkpoint import Checkpoint, stop_requested
from prefdag.training.loop import optimizer_of, schedule
from prefdag.training.records import Step

TABLE_ROUNDS = 10  # in which the fixed prompts are answered


@dataclass
class Progress:
    """Where a training is within its present round."""

    rollouts: Rollouts | None = None
    rewards: Tensor | None = None  # [N, G] after normalisation
    baselines: Tensor | None = None  # [N]
    updates: list[dict[str, float]] = field(default_factory=list)


class OnlineTraining:
    """The training of one run.

    Attributes:
        models: policy, reference and value head.
        method, settings: of the row.
        prompts: token ids of every prompt.
        scorer: scores comparisons of prompt and responses.
        eos: the end-of-turn's id.
        checkpoint: where the state is saved; None: nowhere.
        save_weights: called with the number of each finished round (from 1).
        pair_loss: of a method that is a loss of pairs.
        sampler: of responses; the policy itself by default.
        on_round: called with each round's number, its rollouts and seconds by phase, before its record.
    """

    def __init__(
        self,
        models: Models,
        method: Objective,
        settings: Online,
        prompts: Sequence[NDArray[np.int32]],
        scorer: Scorer,
        eos: int,
        checkpoint: Checkpoint | None = None,
        save_weights: Callable[[int], None] | None = None,
        on_round: Callable[[int, Rollouts, dict[str, float]], None] | None = None,
        pair_loss: PairLoss | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        if len(prompts) < settings.batch_size:
            raise UserError(
                f"online.batch_size: a round has {settings.batch_size} prompts, and there are {len(prompts)}; lower it"
            )
        self.models, self.method, self.settings, self.prompts = models, method, settings, prompts
        self.scorer, self.checkpoint = scorer, checkpoint
        self.own_sampler = OwnSampler(models.policy, eos, settings.top_k)
        self.sampler = sampler or self.own_sampler
        self.save_weights, self.on_round, self.pair_loss = save_weights, on_round, pair_loss
        self.coefficient, self.moments = settings.kl.coefficient, Moments()
        self.progress, self.history = Progress(), list[dict[str, Any]]()
        rate = getattr(method, "value_learning_rate", None) or settings.learning_rate
        critic = models.critic
        self.optimizers = Optimizers(
            optimizer_of(models.policy, settings),
            None
            if critic is None
            else optimizer_of(critic.module, settings.model_copy(update={"learning_rate": rate})),
        )
        self.value_rate = rate
        self.answers: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}

    def rounds(self) -> Iterator[Step]:
        """Train the policy in place, yielding a record after each round; saved records come first.

        Raises:
            Stopped: after SIGTERM or SIGINT, once the state is saved.
            UserError: a score, a loss or a gradient is not finite.
        """
        self._load()
        yield from (Step(**record) for record in self.history)
        with stop_requested() as signals, recompute_blocks(self.models.policy, self.settings.activation_gb):
            for number in range(len(self.history), self.settings.max_steps):
                try:
                    for _ in self._phases(number):
                        self._pause(signals)
                except PolicyChanged:
                    raise
                except UserError:  # at a score or an update, which a rerun repeats
                    self._save()
                    raise
                self._pause(signals)
                yield Step(**self.history[-1])

    def _phases(self, number: int) -> Iterator[str]:
        """Run a round from its present point, yielding at every point where it may be interrupted."""
        progress, self.seconds = self.progress, {}
        if progress.rollouts is None:
            with self._timed("sample"):
                progress.rollouts = sample_round(self.sampler, self.prompts, number, self.settings)
            yield "sampled"
        if progress.rewards is None:
            with self._timed("score"):
                self._score(number)
            yield "scored"
        comparisons = progress.rollouts.comparisons(self.prompts)
        updates = Round(self.models, self.method, self.settings, number, comparisons, self.pair_loss)
        if progress.rollouts.old is None and not updates.measures_in_first_update:
            with self._timed("measure"):
                progress.rollouts = updates.measured(progress.rollouts)
            yield "measured"
        factor = schedule(number, self.settings.max_steps, self.settings)
        rates = factor * self.settings.learning_rate, factor * self.value_rate
        targets = None
        for update in range(len(progress.updates), updates.num_updates):
            with self._timed("train"):
                progress.rollouts, targets, metrics = updates.update(
                    update, progress.rollouts, self._targets, self.optimizers, rates, self.coefficient
                )
            progress.updates.append(metrics)
            if update + 1 < updates.num_updates:
                yield "updated"
        self._finish(number, rates[0], targets or self._targets(progress.rollouts))

    def _score(self, number: int) -> None:
        """Score the responses, and normalise the scores by the moments of all scores so far."""
        rollouts = self.progress.rollouts
        assert rollouts is not None
        comparisons = rollouts.comparisons(self.prompts)
        values = self.scorer(comparisons)
        check_scores(values, comparisons, self.settings.reward, number)
        scores = torch.from_numpy(values)
        if isinstance(self.method, Reinforce) and self.method.baseline == "greedy":
            greedy = sample_round(self.sampler, self.prompts, number, self.settings, temperature=0)
            answers = greedy.comparisons(self.prompts)
            values = self.scorer(answers)
            check_scores(values, answers, self.settings.reward, number)
            shaped = with_missing_ends(torch.from_numpy(values), greedy.ended, self.settings.missing_eos)
            self.progress.baselines = shaped[:, 0]
        shaped = with_missing_ends(scores, rollouts.ended, self.settings.missing_eos)
        self.moments = self.moments.updated(shaped)
        how = self.settings.normalise_rewards
        if self.progress.baselines is not None:
            self.progress.baselines = self.moments.normalise(self.progress.baselines, how)
        labels = None if self.settings.labels is None else labels_of(scores, rollouts.prompts, number, self.settings)
        self.progress.rollouts = rollouts.with_values(scores=scores, labels=labels)
        self.progress.rewards = self.moments.normalise(shaped, how)

    def _targets(self, rollouts: Rollouts) -> Targets:
        assert self.progress.rewards is not None
        return targets_of(
            self.method, self.settings, rollouts, self.progress.rewards, self.coefficient, self.progress.baselines
        )

    def _finish(self, number: int, rate: float, targets: Targets) -> None:
        """Make the round's record, adapt the KL's coefficient, and begin the next round."""
        progress = self.progress
        rollouts = progress.rollouts
        assert rollouts is not None
        answers = []
        if number % max(1, self.settings.max_steps // TABLE_ROUNDS) == 0 or number + 1 == self.settings.max_steps:
            fixed = self.prompts[: self.settings.sample_table]
            answers = answers_to(fixed, self.own_sampler, self.scorer, self.settings, number)
        metrics = round_metrics(rollouts, targets, progress.updates, self.settings) | {
            "kl_coefficient": self.coefficient,
            **further_metrics(rollouts, progress.updates, self.settings),
        }
        state = {"kl_coefficient": self.coefficient}
        if self.settings.kl.target is not None:
            self.coefficient = adapted_coefficient(
                self.coefficient,
                metrics["kl"],
                target=self.settings.kl.target,
                horizon=self.settings.kl.horizon,
                batch_size=rollouts.lengths.numel(),
            )
            state["kl_coefficient"] = self.coefficient
        loss = sum(each["loss"] for each in progress.updates) / len(progress.updates)
        norm = sum(each["policy_grad_norm"] for each in progress.updates) / len(progress.updates)
        record = Step(
            number + 1, loss, rate, norm, rollouts.lengths.numel(), int(rollouts.lengths.sum()), metrics, state
        )
        self.history.append(asdict(record))
        self.answers += answers
        self.progress = Progress()
        if self.on_round is not None:
            self.on_round(record.number, rollouts, self.seconds)
        if self.save_weights is not None:
            self.save_weights(record.number)

    def _timed(self, phase: str) -> "_Timer":
        return _Timer(self.seconds, phase)

    def _pause(self, signals: list[str]) -> None:
        """Save the state if it is due or the training is to stop; then stop."""
        checkpoint = self.checkpoint
        requests = all_gather_objects((signals[:1], checkpoint is not None and checkpoint.due()))
        if checkpoint is not None and any(names or due for names, due in requests):
            self._save()
            all_gather_objects("saved")  # a barrier: no process may end while the first one still writes
        for names, _ in requests:
            if names:
                raise Stopped(names[0])

    def _save(self) -> None:
        if self.checkpoint is not None and is_first():
            self.checkpoint.save(self._state())

    def _state(self) -> dict[str, Any]:
        progress, critic = self.progress, self.models.critic
        return {
            "model": trained_state(self.models.policy),
            "value": None if critic is None else critic.module.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "history": self.history,
            "answers": self.answers,
            "coefficient": self.coefficient,
            "moments": asdict(self.moments),
            "progress": {
                "rollouts": None if progress.rollouts is None else progress.rollouts.to_dict(),
                "rewards": progress.rewards,
                "baselines": progress.baselines,
                "updates": progress.updates,
            },
        }

    def _load(self) -> None:
        saved = None if self.checkpoint is None else self.checkpoint.load()
        position = None if saved is None else (len(saved["history"]), len(saved["progress"]["updates"]))
        if len(set(all_gather_objects(position))) > 1:
            raise UserError(
                "policy: the nodes read different saved states; put the results on a disk that all nodes share"
            )
        if saved is None:
            return
        load_trained_state(self.models.policy, saved["model"])
        if self.models.critic is not None:
            self.models.critic.module.load_state_dict(saved["value"])
        self.optimizers.load_state_dict(saved["optimizers"])
        self.history, self.coefficient = saved["history"], saved["coefficient"]
        self.answers = saved["answers"]
        self.moments, progress = Moments(**saved["moments"]), saved["progress"]
        rollouts = progress.pop("rollouts")
        self.progress = Progress(None if rollouts is None else Rollouts(**rollouts), **progress)


class _Timer:
    """Adds the seconds of its block to a phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.monotonic() - self.started

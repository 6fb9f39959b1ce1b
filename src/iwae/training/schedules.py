"""Schedules of learning rates: in stages, as in the paper and its code; with decay or warm-up."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from iwae.errors import UserError
from iwae.typing import Scalar

Schedule = Callable[[Array], Array]


class StagedSchedule(eqx.Module):
    """A learning rate that is constant within stages; its numbers are not compile-time constants.

    Attributes:
        ends: the step at which each stage ends.
        rates: the learning rate of each stage; the last one holds after the last end.
    """

    ends: Int[Array, " stages"]
    rates: Float[Array, " stages"]

    def __call__(self, step: Int[Array, ""]) -> Scalar:
        """The learning rate of the step after `step` steps."""
        stage = jnp.searchsorted(self.ends, step, side="right")
        return self.rates[jnp.minimum(stage, self.rates.size - 1)]


def staged_schedule(
    rates: Sequence[float], epochs: Sequence[int], steps_per_epoch: int, first: int = 0
) -> StagedSchedule:
    """The schedule that holds `rates[i]` for `epochs[i]` epochs, from step `first` on."""
    ends = first + np.cumsum(np.asarray(epochs, np.int64)) * steps_per_epoch
    return StagedSchedule(*jax.device_put((np.int32(ends), np.asarray(rates, np.float32))))


class DecayingSchedule(eqx.Module):
    """A learning rate that is constant up to one step and then decays to its final value.

    Attributes:
        rate: initial rate.
        last: final rate.
        turn: the step at which the decay starts.
        end: the step at which it reaches `last`.
        cosine: whether it decays as half a period of a cosine, or else linearly.
    """

    rate: Float[Array, ""]
    last: Float[Array, ""]
    turn: Int[Array, ""]
    end: Int[Array, ""]
    cosine: bool = eqx.field(static=True)

    def __call__(self, step: Int[Array, ""]) -> Scalar:
        """The learning rate of the step after `step` steps."""
        share = (step - self.turn).astype(jnp.float32) / (self.end - self.turn).astype(jnp.float32)
        share = jnp.clip(share, 0.0, 1.0)
        left = (1 + jnp.cos(jnp.pi * share)) / 2 if self.cosine else 1 - share
        return self.rate * left + self.last * (1 - left)


def decaying(
    rate: float, last: float, turn: int, end: int, *, cosine: bool = False
) -> DecayingSchedule:
    """The schedule that holds `rate` up to step `turn` and decays to `last` at step `end`."""
    rates = jnp.float32(rate), jnp.float32(last)
    return DecayingSchedule(*rates, jnp.int32(turn), jnp.int32(end), cosine)


class WarmUp(eqx.Module):
    """A schedule whose rate rises linearly from zero over its first steps."""

    schedule: Schedule
    first: Int[Array, ""]
    steps: Int[Array, ""]

    def __call__(self, step: Int[Array, ""]) -> Scalar:
        """The learning rate of the step after `step` steps."""
        risen = (step + 1 - self.first).astype(jnp.float32) / self.steps.astype(jnp.float32)
        return jnp.minimum(1.0, risen) * self.schedule(step)


def warming_up(schedule: Schedule, first: int, steps: int) -> WarmUp:
    """Add a linear warm-up of `steps` steps to a schedule, from step `first` on."""
    return WarmUp(schedule, jnp.int32(first), jnp.int32(steps))


def check_schedule_steps(epochs: int, steps_per_epoch: int, first: int = 0) -> None:
    """Raise UserError if the number of steps overflows the 32-bit counter."""
    if first + epochs * steps_per_epoch >= 2**31:
        raise UserError(
            f"epochs is {epochs}, but steps are counted in 32 bits: with {steps_per_epoch} steps "
            f"per epoch, give at most {(2**31 - 1 - first) // steps_per_epoch}"
        )


PAPER_EPOCHS = tuple(3**i for i in range(8))
PAPER_RATES = tuple(1e-3 * 10 ** (-i / 7) for i in range(8))
AUTHORS_RATES = tuple(1e-3 * r for r in (1.0, 0.72, 0.52, 0.37, 0.27, 0.19, 0.14, 0.1))


def paper_schedule_epochs(total: int) -> tuple[int, ...]:
    """The paper's eight stages of 3^i epochs, scaled to `total` epochs (3,280 in the paper).

    Stage ends are rounded, so that short runs skip the short early stages.
    """
    ends = np.round(np.cumsum(PAPER_EPOCHS) * total / sum(PAPER_EPOCHS)).astype(int)
    return tuple(int(n) for n in np.diff(ends, prepend=0))

"""Whether the line still is what the detector was calibrated on: p-values one by one, an alarm that may be trusted.

In: the p-value of every picture, in the order taken. Out: wealth, an alarm, and whether scores have risen or fallen.
A gambler bets that p-values are smaller (or larger) than good images give. If nothing has changed, no bet gains on
average, and Ville's inequality bounds the chance that the wealth *ever* reaches a level: one may look after every
picture, for years (conformal test martingales: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World,
2nd ed. 2022, part III). Each bet is on the share of p-values within a bound (Waudby-Smith and Ramdas, JRSS-B 86
(2024)), and starts anew at every picture with a part of the money, so that years of good pictures do not ruin it
before a change comes (Shin, Ramdas and Rinaldo, E-detectors, New England Journal of Statistics in Data Science 2
(2024)).

Two things keep p-values of a line where nothing has changed from being uniform. All of them share one calibration set,
which is a sample: the shares bet on are widened by what the inequality of Dvoretzky, Kiefer and Wolfowitz with
Massart's constant (Annals of Probability 18 (1990)) allows a sample of n. And some parts are defective: a share of
them is tolerated. Defects raise scores, so falling ones need no such allowance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, SupportsFloat, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Direction = Literal["up", "down"]

_STATE_VERSION = 1
# Bets are on shares of p-values from the lowest twentieth (a strong shift, few calibration images) to the lower half (a
# weak shift, many images).
_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
# Staked of the wealth: if a share q falls within a bound of c, the best stake is (q - c) / (1 - c) (Kelly, 1956).
_STAKES = (0.1, 0.25, 0.5, 0.8)
# A bet on what good images do 19 times in 20 anyway gains 5 % at most; its money is better with the others.
_HIGHEST_BOUND = 0.95
_MOST = 2**53  # integers above this are not counted one by one in floats
_LARGEST_LOG = 700.0  # exp of more overflows


class DriftMonitor:
    """Watches p-values, one per picture and in their order, for scores that rise or fall. 40 numbers of memory.

    The alarm stays until `reset`. On a line that has not changed, and where at most the tolerated share is defective,
    the chance that it ever comes is 1 - confidence, the draw of the calibration images counted in.

    One monitor for one line: `update` is not for several threads at once.

    Parameters
    ----------
    n_calibration : int
        Independent images that the p-values are calibrated on (`Calibration.n`). With fewer, only stronger changes can
        be told from chance; with fewer than 4, none.
    tolerated_defects : float in [0, 1)
        Share of defective pictures that is no drift. 0 for pictures that are known to be good.
    confidence : float in (0, 1)
        Half of what is missing to 1 goes to the draw of the calibration images, half to the betting.
    tied : float in [0, 1]
        Share of the calibration images that have one and the same score, see `tied_share`. Ties raise p-values, and
        without this a scorer with few values looks like falling scores.

    Attributes
    ----------
    n_seen : pictures since the start or `reset`
    alarmed_at : number of the picture that raised the alarm, from 1; None without one
    direction : "up" if scores had risen then, "down" if they had fallen; None without an alarm

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Examples
    --------
    >>> monitor = DriftMonitor(n_calibration=200)
    >>> any(monitor.update(p) for p in np.random.default_rng(0).random(1000))
    False
    >>> while not monitor.update(0.01):
    ...     pass
    >>> monitor.direction, monitor.alarmed_at
    ('up', 1019)
    >>> DriftMonitor.from_state(monitor.state()).alarm
    True
    """

    n_seen: int
    alarmed_at: int | None
    direction: Direction | None
    _log_stakes: NDArray[np.float64]

    def __init__(
        self, n_calibration: int, *, tolerated_defects: float = 0.15, confidence: float = 0.99, tied: float = 0.0
    ):
        self.n_calibration = _whole(n_calibration, "n_calibration", least=1)
        self.tolerated_defects = _share(tolerated_defects, "tolerated_defects")
        self.confidence = _share(confidence, "confidence")
        self.tied = _share(tied, "tied")
        if self.tolerated_defects == 1.0:
            raise ValueError("tolerated_defects is 1.0: if every picture may be defective, there is nothing to watch")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence is {self.confidence}: need a share in (0, 1), such as 0.99")
        self._lay_out_bets()
        self.reset()

    @property
    def level(self) -> float:
        """Wealth that is an alarm: 200 at a confidence of 0.99."""
        return 2 / (1 - self.confidence)

    @property
    def wealth(self) -> float:
        """Evidence of drift: what 1 has grown to. At most 1 on average while nothing has changed."""
        return math.exp(min(self._log_wealth(), _LARGEST_LOG))

    @property
    def alarm(self) -> bool:
        """Whether drift was seen since the start or `reset`."""
        return self.alarmed_at is not None

    def update(self, p: SupportsFloat) -> bool:
        """Take the p-value of the next picture; whether there is an alarm, from this picture or an earlier one.

        Raises
        ------
        ValueError
            If p is not a number in (0, 1]. Nothing is counted then.
        """
        value = _p_value(p)
        hit = (self._from <= value) & (value <= self._to)
        stakes = self._log_stakes + np.where(hit, self._log_hit, self._log_miss)
        self._log_stakes = np.logaddexp(stakes, _log_prior(self.n_seen + 2))
        self.n_seen += 1
        if self.alarmed_at is None and self._log_wealth() >= math.log(self.level):
            self.alarmed_at = self.n_seen
            up, down = _log_sum(stakes[self._is_up]), _log_sum(stakes[~self._is_up])
            self.direction = "up" if up >= down else "down"
        return self.alarm

    def reset(self) -> None:
        """Forget all pictures, for a line that has been put right or a detector with a new calibration.

        Every start is a new test with its own chance of a false alarm.
        """
        self.n_seen, self.alarmed_at, self.direction = 0, None, None
        # What each bet holds, with what comes to it at the next picture: never 0, so every logarithm is finite.
        self._log_stakes = np.full(self._log_hit.size, _log_prior(1))

    def state(self) -> dict[str, Any]:
        """All of it, to go on from with `from_state`; JSON-able, less than 2 kB."""
        return {
            "version": _STATE_VERSION,
            "n_calibration": self.n_calibration,
            "tolerated_defects": self.tolerated_defects,
            "confidence": self.confidence,
            "tied": self.tied,
            "n_seen": self.n_seen,
            "alarmed_at": self.alarmed_at,
            "direction": self.direction,
            "log_stakes": self._log_stakes.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DriftMonitor:
        """The monitor of a `state`, which goes on as the one that it was taken of.

        Raises
        ------
        ValueError
            If it is no state, is of another version, or its numbers cannot belong together.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"state of a drift monitor: need a dict, not {type(state).__name__}")
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"state of a drift monitor: version is {state.get('version')!r}, this is for {_STATE_VERSION}"
            )
        parameters = ("n_calibration", "tolerated_defects", "confidence", "tied")
        needed = {"version", *parameters, "n_seen", "alarmed_at", "direction", "log_stakes"}
        if wrong := sorted(map(str, needed ^ set(state))):
            raise ValueError(f"state of a drift monitor: missing or unknown: {', '.join(wrong)}")
        monitor = cls(**{name: state[name] for name in parameters})
        monitor.n_seen = _whole(state["n_seen"], "n_seen", least=0)
        alarmed_at, direction = state["alarmed_at"], state["direction"]
        if (alarmed_at is None) != (direction is None) or direction not in ("up", "down", None):
            raise ValueError(f"alarmed_at is {alarmed_at!r} and direction {direction!r}: need both, or None for both")
        if alarmed_at is not None:
            monitor.alarmed_at = _whole(alarmed_at, "alarmed_at", least=1)
            if monitor.alarmed_at > monitor.n_seen:
                raise ValueError(f"alarmed_at is {alarmed_at} and n_seen {monitor.n_seen}: it cannot be later")
        monitor.direction = cast("Direction | None", direction)
        monitor._log_stakes = _logarithms(state["log_stakes"], monitor._log_hit.size)
        return monitor

    def explain(self) -> str:
        """What was seen, what it may come from, and what to do, in plain English."""
        if not self._log_hit.size:
            return (
                f"Drift is not watched for: {self.n_calibration} calibration images "
                f"{'with so many equal scores ' if self.tied else ''}are too few to tell it from chance"
            )
        if self.alarmed_at is None:
            return (
                f"No drift in {self.n_seen} pictures: the evidence is {self.wealth:.3g}, an alarm takes "
                f"{self.level:.4g}. With {100 * self.confidence:.4g} % confidence none ever comes while nothing changes"
            )
        seen = f"Drift, seen at picture {self.alarmed_at}: these pictures score"
        if self.direction == "down":
            return (
                f"{seen} lower than good images do. A camera out of focus, a frozen picture or something in front of "
                "the lens does that, and defects are missed then: look at the pictures. If they are as they should be, "
                "the threshold is too high: `recalibrate` with fresh good images, or fit again"
            )
        if self.tolerated_defects == 0.0:
            return (
                f"{seen} higher than good images do, though they are said to be good. If they are, the light, the lens "
                "or the product has changed, and the threshold no longer holds: `recalibrate` with fresh good images"
            )
        return (
            f"{seen} higher than good images do, more than {100 * self.tolerated_defects:.3g} % of defects explain. "
            "Look at the alarms first. If they are defects, the detector does its work, and it is the line that needs "
            "help, not the threshold. If they are good parts, the light, the lens or the product has changed: "
            "`recalibrate` with fresh good images"
        )

    def _lay_out_bets(self) -> None:
        """For every bet: the p-values it is on, from and to, and how its money changes if one comes or not."""
        missing = 1 - self.confidence
        # P(sup of what the sample understates > slack) <= exp(-2 n slack^2), for either direction a quarter.
        slack = math.sqrt(math.log(4 / missing) / (2 * self.n_calibration))
        bets: list[tuple[float, float, float, float]] = []
        for share in _SHARES:
            # p <= a: at most a n calibration scores reach this one, so its share in truth is within a + slack.
            low = (share + slack) * (1 - self.tolerated_defects) + self.tolerated_defects
            # p >= 1 - a: at most a (n + 1) lie below this one, and scores equal to the last of them count too.
            high = share * (1 + 1 / self.n_calibration) + self.tied + slack
            bets += [(0.0, share, low, stake) for stake in _STAKES if low < _HIGHEST_BOUND]
            bets += [(1 - share, 1.0, high, stake) for stake in _STAKES if high < _HIGHEST_BOUND]
        self._from, self._to, bound, stake = np.array(sorted(bets)).reshape(-1, 4).T
        # 1 + stake / bound * (hit - bound): no gain on average if hits are no more frequent than the bound.
        self._log_hit, self._log_miss = np.log1p(stake * (1 / bound - 1)), np.log1p(-stake)
        self._is_up = self._from == 0.0

    def _log_wealth(self) -> float:
        """Logarithm of the mean over the bets, and of the money that still waits for its start."""
        if not self._log_stakes.size:
            return 0.0
        held = _log_sum(self._log_stakes) - math.log(self._log_stakes.size)
        return float(np.logaddexp(held, -math.log1p(math.log1p(self.n_seen + 1))))


def watch(
    p_values: ArrayLike, n_calibration: int, *, tolerated_defects: float = 0.15, tied: float = 0.0
) -> DriftMonitor:
    """A new `DriftMonitor` that has seen these p-values (m,), in the order taken.

    The order matters: many defective ones in a row, as in a folder sorted by kind, are a change.

    Raises
    ------
    ValueError
        If they are no vector, one is not in (0, 1], or a parameter is out of its range.

    Examples
    --------
    >>> p_values = np.random.default_rng(0).permutation(np.arange(1, 101) / 100)
    >>> watch(p_values, n_calibration=99).alarm
    False
    >>> watch(p_values / 4, n_calibration=99).direction
    'up'
    """
    monitor = DriftMonitor(n_calibration, tolerated_defects=tolerated_defects, tied=tied)
    values = np.asarray(p_values)
    if values.ndim != 1:
        raise ValueError(f"p_values of shape {values.shape}: need a vector")
    for i, p in enumerate(values.tolist()):
        try:
            monitor.update(p)
        except ValueError as error:
            raise ValueError(f"{error} (at position {i})") from None
    return monitor


def tied_share(scores: ArrayLike) -> float:
    """Share of the scores (n,) that have the most frequent value; 0 where all differ. For `DriftMonitor(tied=)`.

    Examples
    --------
    >>> tied_share([0.0, 0.0, 0.0, 2.5]), tied_share([1.0, 2.0])
    (0.75, 0.0)
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    most = int(np.unique(values, return_counts=True)[1].max(initial=0))
    return most / values.size if most > 1 else 0.0


def _log_prior(t: int) -> float:
    """Logarithm of the part of its money with which a bet starts at picture t.

    1 / (1 + log(1 + t)) has not started after t pictures: sums to 1 and falls little faster than 1 / t, so that a bet
    that starts late is not poor. 1 / (t (t + 1)), as usual, leaves it 100 times less at t = 10 000.
    """
    waiting, before = 1 + math.log1p(t), 1 + math.log(t)
    return math.log(math.log1p(1 / t)) - math.log(waiting) - math.log(before)  # of 1 / before - 1 / waiting


def _log_sum(logarithms: NDArray[np.float64]) -> float:
    largest = float(logarithms.max(initial=-math.inf))
    return largest if math.isinf(largest) else largest + math.log(float(np.exp(logarithms - largest).sum()))


def _p_value(p: Any) -> float:
    try:
        value = float(p)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise ValueError(f"p-value {p!r}: need a share in (0, 1], not a score")
    return value


def _whole(value: Any, name: str, least: int) -> int:
    # numpy's integers are welcome, True is not: it comes from a comparison in the wrong place.
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= _MOST:
        raise ValueError(f"{name} is {value!r}: need a whole number from {least} on")
    return int(value)


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value!r}: need a share from 0 to 1")
    return float(value)


def _logarithms(values: Any, size: int) -> NDArray[np.float64]:
    if not isinstance(values, list) or len(values) != size:
        found = f"{len(values)}" if isinstance(values, list) else type(values).__name__
        raise ValueError(f"log_stakes: need a list of {size} numbers, not {found}")
    for value in values:
        # JSON knows no NaN, but Python's reader does.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"log_stakes: {value!r} is no finite number")
    return np.array(values, dtype=np.float64)

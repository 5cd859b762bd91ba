"""Plans each second, in the process that leads, which models are loaded: gathers what is known, has ``broker.survey``
and ``broker.planner`` decide, and writes the orders down. Costs one small query while no worker has a model to load.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from broker.clock import DatabaseClock, to_the_millisecond
from broker.clockwork import Leadership
from broker.database import Database
from broker.demand import Demand, Demands
from broker.desired import DesiredModels
from broker.devices import Others
from broker.forecast import HOUR, Forecast, forecast, hour_of
from broker.measurements import Measurements
from broker.planner import plan
from broker.plans import Decision, Expectation, Order, Overview, Plans, Standing
from broker.registry import Registry, Worker
from broker.snapshot import READY, Rules
from broker.survey import Facts, orders_after, survey
from broker.usage import Usage
from config import AutoSwitchSettings, Settings

log = logging.getLogger(__name__)

# Decisions that are kept for operators to see.
KEPT = 100
# Seconds after which it is said again that there is nothing new; who has not heard for longer than STALE, has no plan.
SAY = timedelta(seconds=5)
STALE = timedelta(seconds=15)
# Seconds for which a forecast is good: the usage behind it is rolled up each minute.
_FORECAST = 60.0
# Seconds before an hour at which what is expected in it begins to count: time for a large model to load.
_AHEAD = 300.0


def rules_of(settings: AutoSwitchSettings) -> Rules:
    return Rules(enabled=settings.enabled, max_swap_wait=settings.max_swap_wait)


class Switching:
    """``tick`` is for the clockwork of the process that leads."""

    def __init__(self, database: Database, settings: Settings, leadership: Leadership) -> None:
        self._workers = database.workers
        self._models = settings.models
        self._rules = rules_of(settings.auto_switch)
        self._leadership = leadership
        self._registry = Registry(database)
        self._desired = DesiredModels(database)
        self._measurements = Measurements(database, settings.models)
        self._demands = Demands(database, self._registry)
        self._forecasts = Forecasts(Usage(database), settings.auto_switch.pattern_window_days)
        self._plans = Plans(database)
        self._clock = DatabaseClock(database)
        self._epoch: int | None = None
        self._others: Others | None = None

    def forget(self) -> None:
        """This process does not lead: what it knows of recent minutes counts for nothing."""
        self._epoch = None
        self._others = None
        self._demands.forget()

    async def tick(self) -> int:
        """Plans once; returns how many orders are new. Raises PyMongoError."""
        workers = await self._registry.live_workers()
        models = [name for name in self._models if any(worker.manages(name) for worker in workers)]
        epoch = await self._take_over() if models else None
        if epoch is None:
            return 0
        # Whoever led before can write no more: what is read now is all that has been promised.
        standing = await self._plans.look()
        others = self._others = self._others or Others(standing.overview.others)
        facts = await self._facts(models, workers, standing, others.known())
        found = survey(facts)
        others.note(facts.now, found.devices)
        planned = plan(found.snapshot)
        orders, decisions = orders_after(facts, planned)
        waiting = {model: found.unfit.get(model, reason) for model, reason in planned.waiting.items()}
        overview = Overview(
            planned_at=facts.now,
            decisions=(*reversed(decisions), *standing.overview.decisions)[:KEPT],
            waiting=waiting,
            unfit=found.unfit,
            expected=tuple(_expectation(model, found) for model, found in facts.forecasts.items()),
            others=others.known(),
        )
        return await self._write(epoch, standing, orders, overview, decisions)

    async def _take_over(self) -> int | None:
        """The epoch in which this process plans; with a new one it shuts out who led before. None if it may not."""
        epoch = self._leadership.epoch
        if epoch != self._epoch:
            self.forget()
            if not await self._plans.take(epoch):
                log.info("plans are made by a newer leader than this one of epoch %d", epoch)
                return None
            self._epoch = epoch
        return epoch

    async def _facts(
        self, models: Sequence[str], workers: Sequence[Worker], standing: Standing, others: Mapping[str, int]
    ) -> Facts:
        at = await self._clock.now()
        known, desired, measured, forecasts, now = await asyncio.gather(
            self._workers.find({}, {"_id": 1}).to_list(),
            self._desired.all(),
            self._measurements.all(),
            self._forecasts.look(models, at),
            self._clock.ago(0.0),
        )
        return Facts(
            now=to_the_millisecond(now),
            models=models,
            workers=workers,
            known=frozenset(document["_id"] for document in known) | {worker.id for worker in workers},
            desired=desired,
            orders=standing.orders,
            demand=await self._demand(models, workers),
            measured=measured,
            forecasts=forecasts,
            others=others,
            rules=self._rules,
        )

    async def _demand(self, models: Sequence[str], workers: Sequence[Worker]) -> Mapping[str, Demand]:
        since: dict[str, dict[str, datetime]] = {model: {} for model in models}
        for worker in workers:
            for model, known in since.items():
                state = worker.models.get(model)
                if state is not None and state.state == READY and state.since is not None:
                    known[worker.id] = state.since
        return await self._demands.look(since)

    async def _write(
        self,
        epoch: int,
        standing: Standing,
        orders: Sequence[Order],
        overview: Overview,
        decisions: Sequence[Decision],
    ) -> int:
        if not decisions and _same(standing, orders, overview) and not _to_say(standing.overview, overview):
            return 0
        if not await self._plans.write(orders, overview, epoch):
            log.info("a newer leader has planned meanwhile; what this one of epoch %d decided is void", epoch)
            self.forget()
            return 0
        for decision in decisions:
            where = f" ({', '.join(decision.gpus)})" if decision.gpus else ""
            log.info(
                "plan: %s %s on worker %s%s: %s", decision.kind, decision.model, decision.worker, where, decision.reason
            )
        return len(decisions)


class Forecasts:
    """What the pattern expects of each model in the hour that runs, or that is about to begin; once a minute."""

    def __init__(self, usage: Usage, days: int) -> None:
        self._usage = usage
        self._days = days
        self._looked = -math.inf
        self._known: dict[str, Forecast] = {}

    async def look(self, models: Sequence[str], now: float) -> Mapping[str, Forecast]:
        """``now``: seconds since 1970. Raises PyMongoError."""
        fresh = time.monotonic() - self._looked < _FORECAST and self._known.keys() >= set(models)
        if not fresh:
            hour, ahead = hour_of(now), hour_of(now + _AHEAD)
            used = await self._usage.submitted(models, hour, self._days)
            self._known = {model: forecast(used.get(model, {}), ahead, hour, self._days) for model in models}
            self._looked = time.monotonic()
        return {model: self._known[model] for model in models}


def _same(standing: Standing, orders: Sequence[Order], overview: Overview) -> bool:
    before = standing.overview
    return (
        set(standing.orders) == set(orders)
        and (before.waiting, before.unfit) == (overview.waiting, overview.unfit)
        and before.expected == overview.expected
    )


def _to_say(before: Overview, now: Overview) -> bool:
    """Whether it is time to say again that the leader lives."""
    said, planned = before.planned_at, now.planned_at
    return said is None or planned is None or planned - said >= SAY


def _expectation(model: str, found: Forecast) -> Expectation:
    hour = datetime.fromtimestamp(found.hour * HOUR, UTC)
    return Expectation(model, hour, found.jobs, found.trusted, found.reason)

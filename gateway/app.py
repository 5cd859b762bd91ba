"""The gateway as a Starlette application."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from broker.broker import Broker
from broker.chunk_feed import ChunkFeed
from broker.page_feed import PageFeed
from config import Settings
from gateway.auth import LOGIN_LIMIT, AuthenticationMiddleware
from gateway.context import Context
from gateway.outbound.guard import ADMISSIONS, Guard, Outbound, SystemResolver
from gateway.outbound.images import AT_ONCE as IMAGES_AT_ONCE
from gateway.problems import EXCEPTION_HANDLERS, ProblemMiddleware
from gateway.rate_limit import Limit, RateLimiter, ensure_rate_limit_schema
from gateway.routes import ROUTES
from gateway.secrets import admin_password, jwt_secret
from gateway.tokens import Tokens
from gateway.users import Users
from gateway.v1.batches.feeder import BatchFeeder
from gateway.v1.errors import openai_response
from gateway.webhooks.deliverer import Deliverer
from gateway.webhooks.secrets import WebhookSecrets


def create_app(settings: Settings, broker: Broker) -> Starlette:
    """The application; it opens and closes with its lifespan. Raises ConfigError for secrets that will not do."""
    resolvers = SystemResolver(), SystemResolver(ADMISSIONS)
    shared = _context(settings, broker, Guard(settings.outbound, *resolvers))
    batch_feeder = BatchFeeder(shared)
    app = Starlette(
        routes=ROUTES,
        exception_handlers=EXCEPTION_HANDLERS,
        middleware=[
            Middleware(ProblemMiddleware, shapes={"/v1": openai_response}),
            Middleware(AuthenticationMiddleware, tokens=shared.tokens),
        ],
        lifespan=_lifespan(shared, batch_feeder, resolvers),
    )
    app.state.context, app.state.batch_feeder = shared, batch_feeder
    return app


def _context(settings: Settings, broker: Broker, guard: Guard) -> Context:
    database = broker.database.handle
    limit = Limit(settings.rate_limit.requests_per_minute, settings.rate_limit.burst)
    return Context(
        settings=settings,
        broker=broker,
        page_feed=PageFeed(broker.database, broker.feed, settings.queue.poll_interval),
        chunk_feed=ChunkFeed(broker.database, broker.feed, settings.queue.poll_interval),
        tokens=_tokens(settings),
        users=Users(database),
        limiter=RateLimiter(database, "submit", limit),
        logins=RateLimiter(database, "login", LOGIN_LIMIT),
        guard=guard,
        images=Outbound(guard, IMAGES_AT_ONCE),
        webhook_secrets=WebhookSecrets(database),
    )


def _tokens(settings: Settings) -> Tokens:
    given = settings.jwt_secret
    return Tokens(
        jwt_secret(settings.home, given.get_secret_value() if given else None),
        issuer=settings.auth.issuer,
        audience=settings.auth.audience,
        access_ttl=settings.auth.access_token_ttl,
        refresh_ttl=settings.auth.refresh_token_ttl,
    )


def _lifespan(
    shared: Context, batch_feeder: BatchFeeder, resolvers: Iterable[SystemResolver]
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Starts what works in the background, and ends all that is open."""
    broker, settings, given = shared.broker, shared.settings, shared.settings.admin_password
    password = admin_password(settings.home, given.get_secret_value() if given else None)
    deliverer = Deliverer(broker, shared.guard, shared.webhook_secrets)

    async def prepare() -> None:
        await ensure_rate_limit_schema(broker.database.handle)
        await shared.users.ensure_admin(password, from_env=given is not None)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        broker.start(prepare, batch_feeder.start)
        shared.chunk_feed.start()
        if settings.outbound.webhooks:
            deliverer.start()
        try:
            yield
        finally:
            await deliverer.close()
            await shared.images.close()
            for resolver in resolvers:
                resolver.close()
            await batch_feeder.close()
            await shared.chunk_feed.close()
            await shared.page_feed.close()
            await broker.close()

    return lifespan

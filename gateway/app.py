"""The gateway as a Starlette application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from broker.broker import Broker
from broker.page_feed import PageFeed
from config import Settings
from gateway.auth import LOGIN_LIMIT, AuthenticationMiddleware
from gateway.context import Context
from gateway.problems import EXCEPTION_HANDLERS, ProblemMiddleware
from gateway.rate_limit import Limit, RateLimiter, ensure_rate_limit_schema
from gateway.routes import ROUTES
from gateway.secrets import admin_password, jwt_secret
from gateway.tokens import Tokens
from gateway.users import Users


def create_app(settings: Settings, broker: Broker) -> Starlette:
    """The application; it opens and closes with its lifespan. Raises ConfigError for secrets that will not do."""
    given_jwt, given_password = settings.jwt_secret, settings.admin_password
    tokens = Tokens(
        jwt_secret(settings.home, given_jwt.get_secret_value() if given_jwt else None),
        issuer=settings.auth.issuer,
        audience=settings.auth.audience,
        access_ttl=settings.auth.access_token_ttl,
        refresh_ttl=settings.auth.refresh_token_ttl,
    )
    password = admin_password(settings.home, given_password.get_secret_value() if given_password else None)
    database = broker.database.handle
    users = Users(database)
    page_feed = PageFeed(broker.database, broker.feed, settings.queue.poll_interval)
    limit = Limit(settings.rate_limit.requests_per_minute, settings.rate_limit.burst)

    async def prepare() -> None:
        await ensure_rate_limit_schema(database)
        await users.ensure_admin(password, from_env=given_password is not None)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        broker.start(prepare)
        try:
            yield
        finally:
            await page_feed.close()
            await broker.close()

    app = Starlette(
        routes=ROUTES,
        exception_handlers=EXCEPTION_HANDLERS,
        middleware=[Middleware(ProblemMiddleware), Middleware(AuthenticationMiddleware, tokens=tokens)],
        lifespan=lifespan,
    )
    app.state.context = Context(
        settings=settings,
        broker=broker,
        page_feed=page_feed,
        tokens=tokens,
        users=users,
        limiter=RateLimiter(database, "submit", limit),
        logins=RateLimiter(database, "login", LOGIN_LIMIT),
    )
    return app

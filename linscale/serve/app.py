"""The application: paths, what stands in front of them, and what they share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from linscale import __version__
from linscale.generate.identity import Identity, identify
from linscale.generate.jinja_template import ChatTemplate
from linscale.generate.state_store import StateStore
from linscale.serve import about, chat, completions, page, states
from linscale.serve.errors import Catch, add_handlers
from linscale.serve.limits import BodyLimit, HostGuard, KeyGuard
from linscale.serve.metrics import CountRequests, Metrics
from linscale.serve.options import ServeOptions
from linscale.serve.saved_states import SavedStates
from linscale.serve.service import Service
from linscale.serve.streams import Mailbox
from linscale.serve.token_text import TokenText

if TYPE_CHECKING:
    from linscale.generate.worker import Worker


def create_app(
    worker: Worker, store: StateStore, options: ServeOptions, *, identity: Identity | None = None,
    template: ChatTemplate | None = None, hosts: Sequence[str] | None = None,
) -> FastAPI:  # fmt: skip
    """The app of a model that a worker drives, whose states are in `store`. The worker is started by the caller.

    `identity` is that of a model which was cast since it was loaded; `template` is its chat template; `hosts` are the
    names that the server answers to, None for any (see `limits.names_of`). `app.state.service` is there once the app
    runs.
    """
    metrics = Metrics(worker.stats)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = _service(worker, store, options, metrics, identity, template)
        yield

    app = FastAPI(title="linscale", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for router in (completions.router, chat.router, states.router, about.router, page.router):
        app.include_router(router)
    add_handlers(app)
    # The last one added is the first that a request meets.
    app.add_middleware(Catch)
    app.add_middleware(BodyLimit, most_bytes=options.max_body_bytes, most_s=options.body_s)
    app.add_middleware(KeyGuard, keys=options.api_key)
    if options.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origin,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type"),
        )
    app.add_middleware(HostGuard, hosts=hosts, origins=options.cors_origin)
    app.add_middleware(CountRequests, metrics=metrics)
    return app


def _service(
    worker: Worker, store: StateStore, options: ServeOptions, metrics: Metrics, identity: Identity | None,
    template: ChatTemplate | None,
) -> Service:  # fmt: skip
    model, tokenizer = worker.engine.model, worker.engine.tokenizer
    identity = identity or identify(model, tokenizer)
    return Service(
        worker=worker,
        states=SavedStates(store, model, tokenizer, identity, options.state_cache_bytes),
        options=options,
        metrics=metrics,
        mailbox=Mailbox(asyncio.get_running_loop()),
        token_text=TokenText(tokenizer),
        name=options.model_name or store.folder.parent.name or "linscale",
        created=int(time.time()),
        template=template,
    )

"""/v1/models, /health and /metrics: what is served, and how it fares."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from linscale.models.count import arch, state_elements
from linscale.serve.metrics import CONTENT_TYPE
from linscale.serve.service import Service

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(request.app.state.service)]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The model of a name."""
    service: Service = request.app.state.service
    service.check_model(name)
    return _model(service)


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests are taken; 503 while the server stops, or when its engine has."""
    service: Service = request.app.state.service
    alive = service.worker.alive
    status = "engine stopped" if not alive else "draining" if service.draining else "ok"
    return JSONResponse({"status": status, "model": service.name}, 200 if status == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _model(service: Service) -> dict[str, Any]:
    engine, stats = service.worker.engine, service.worker.stats()
    config = engine.model.config
    growing = state_elements(config, 1) - state_elements(config, 0)
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "linscale",
        "description": service.states.identity.model_name,
        "architecture": arch(config),
        "fingerprint": service.states.identity.model,
        "tokenizer": service.states.identity.tokenizer_name,
        "context": engine.limit,
        "max_prompt_tokens": service.options.max_prompt_tokens,
        "max_tokens": service.options.max_tokens,
        "slots": stats.slots,
        "state_bytes": stats.state_bytes,
        "state_bytes_per_token": growing * engine.setup.dtype.itemsize,
        "softmax_bytes_per_token": 2 * config.n_layers * config.d_model * engine.setup.dtype.itemsize,
        "chat_template": service.template is not None,
    }

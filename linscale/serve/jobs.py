"""From the body of a request to the job that it asks for: limits, states, seeds."""

from __future__ import annotations

from collections.abc import Sequence

from linscale.generate.sampling import MOST_LOGPROBS
from linscale.generate.snapshot import Snapshot
from linscale.serve.errors import ApiError
from linscale.serve.generation import Job, seeded
from linscale.serve.schemas import Generation as Body
from linscale.serve.service import Service


async def job_of(
    service: Service, body: Body, prompts: Sequence[Sequence[int]], max_tokens: int, *, logprobs: int | None,
    state: Snapshot | None = None, stop_tokens: tuple[int, ...] = (), stop: tuple[str, ...] = (),
) -> Job:  # fmt: skip
    """What a completion or a chat asks for. `state` is that of `body.state`, where it was loaded before.

    Raises ApiError and UserError for what is beyond a limit or not valid.
    """
    texts = len(prompts) * (body.n or 1)
    most = min(service.options.max_choices, service.worker.stats().slots + service.options.max_waiting)
    if texts > most:
        raise ApiError(400, f"n: {texts} texts are asked for; this server writes at most {most} a request", param="n")
    if max_tokens > service.options.max_tokens:
        raise ApiError(
            400,
            f"max_tokens = {max_tokens}: this server writes at most {service.options.max_tokens}",
            param="max_tokens",
        )
    if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
        raise ApiError(400, f"logprobs = {logprobs}: expected 0 to {MOST_LOGPROBS}", param="logprobs")
    if body.save_state is not None:
        if texts > 1:
            raise ApiError(400, f"save_state: {texts} texts are asked for; one has a state to save", param="save_state")
        service.states.require_free(body.save_state, bool(body.replace), "save_state")
    for prompt in prompts:
        service.check_prompt(len(prompt))
    if state is None and body.state is not None:
        state = await service.states.load(body.state)
    sampling = body.sampling(max_tokens, logprobs, stop_tokens, stop)
    samplings = seeded(sampling, body.n or 1, state)
    return Job(prompts, samplings, state, body.save_state, bool(body.replace))

"""Connections that clients leave hanging are ended; those that wait for an answer are not."""

import asyncio
import errno

import uvicorn

from linscale.serve.connections import Full, watch
from linscale.serve.process import Server, listen

HEAD = b"GET /%s HTTP/1.1\r\nHost: x\r\n"


async def app(scope, receive, send):
    """/large: more than all buffers hold. /late: after a while."""
    if scope["path"] == "/late":
        await asyncio.sleep(0.7)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * (1 << 25 if scope["path"] == "/large" else 1)})


async def served():
    server = Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    with listen("127.0.0.1", 0) as bound:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started:
            await asyncio.sleep(0.01)
        watching = asyncio.create_task(watch(server, 0.2))
        sent = (HEAD % b"half", HEAD % b"large" + b"\r\n", HEAD % b"late" + b"\r\n")
        connections = [await asyncio.open_connection(*bound.getsockname(), limit=1) for _ in sent]
        for (_, writer), content in zip(connections, sent, strict=True):
            writer.write(content)
        late = await connections[-1][0].readexactly(15)
        async with asyncio.timeout(10):
            while server.server_state.connections:
                await asyncio.sleep(0.02)
        watching.cancel()
        server.should_exit = True
        await serving
        for _, writer in connections:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)
        return late


def test_half_a_request_and_an_answer_that_nobody_takes_are_ended_and_a_late_answer_is_not():
    assert asyncio.run(served()) == b"HTTP/1.1 200 OK"


def test_a_server_that_is_full_says_so_once(caplog):
    loop, full = asyncio.new_event_loop(), Full()
    for _ in range(1000):
        full(loop, {"message": "socket.accept()", "exception": OSError(errno.EMFILE, "Too many open files")})
    full(loop, {"message": "another", "exception": ValueError("this is said as ever")})
    loop.close()
    assert caplog.text.count("Too many open files") == 1
    assert caplog.text.count("this is said as ever") == 1

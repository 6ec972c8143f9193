"""One task with nothing but nats-py: submit it, print its words, say how it ended.

python task.py nats://127.0.0.1:4222 "Write one sentence about rivers."
"""

import asyncio
import json
import sys
import uuid

import nats


async def main(url: str, prompt: str, model: str = "mock:words", engine: str = "mock") -> None:
    bus = await nats.connect(url)
    task = str(uuid.uuid4())
    frames = await bus.subscribe(f"llorch.tok.*.{task}")
    request = {
        "task_id": task, "session_id": task, "workload": "completion", "model_ref": model, "engine": engine,
        "ctx": 2048, "priority": "interactive", "max_tokens": 32, "deadline_ms": 60_000, "prompt": prompt,
    }  # fmt: skip
    answer = await bus.request("llorch.api.tasks.submit", json.dumps(request).encode(), timeout=10)
    if "Nats-Service-Error-Code" in (answer.headers or {}):
        sys.exit(answer.data.decode())
    async for frame in frames.messages:
        for block in frame.data.decode().strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            if fields["event"] == "token":
                print(json.loads(fields["data"])["t"], end="", flush=True)
            elif fields["event"] in ("end", "error"):
                print("\n" + fields["data"])
                await bus.close()
                return


asyncio.run(main(*sys.argv[1:]))

"""Publishes one message as a NATS client that is not ours: publish.py URL SUBJECT MODE BODY ID.

MODE is bare, structured or binary. The stream's acknowledgement is waited for.
"""

import asyncio
import json
import sys

import nats


async def main() -> None:
    url, subject, mode, body, identity = sys.argv[1:]
    headers = None
    payload = body.encode()
    if mode == "structured":
        event = {
            "specversion": "1.0",
            "id": identity,
            "source": "/tests/python",
            "type": subject,
            "datacontenttype": "application/json",
            "data": json.loads(body),
        }
        payload = json.dumps(event).encode()
        headers = {"content-type": "application/cloudevents+json"}
    elif mode == "binary":
        headers = {
            "ce-specversion": "1.0",
            "ce-id": identity,
            "ce-source": "/tests/python",
            "ce-type": subject,
            "ce-datacontenttype": "application/json",
        }
    client = await nats.connect(url)
    acknowledged = await client.jetstream().publish(subject, payload, headers=headers)
    print(acknowledged.stream, acknowledged.seq)
    await client.close()


asyncio.run(main())
